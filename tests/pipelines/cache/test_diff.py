"""Covers pipelines.cache.tools.diff."""

import re

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipelines.cache.index import committed_units, read_index
from pipelines.cli import main
from tests.pipelines.builders import fill, make_worker, prepare_tones


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """A cache in float16, in int8, and one of other recordings besides."""
    folder = tmp_path_factory.mktemp("caches")
    manifest = prepare_tones(folder, num_clips=6)
    for codec in ("float16", "int8"):
        fill(folder / codec, manifest, make_worker(folder / codec, codec=codec), shard_nbytes=600_000)
    (folder / "other").mkdir()
    fill(folder / "more", prepare_tones(folder / "other", num_clips=12), make_worker(folder / "more"))
    return folder


def ids(cache) -> set[str]:
    return {
        clip for unit in committed_units(str(cache)) for clip in read_index(str(cache), unit)["clip_id"].to_pylist()
    }


def diff(a, b, *keys) -> int:
    return main(["cache", "diff", f"a={a}", f"b={b}", *keys])


def test_a_cache_is_like_itself_whatever_its_shards(caches, capsys):
    assert diff(caches / "float16", caches / "float16", "sample=1") == 0
    shown = capsys.readouterr().out
    assert "in a alone: 0 clips\nin b alone: 0 clips\nin both: 6 clips, of other bytes 0 clips\n" in shown
    assert "speech: 6 clips compared, SNR 150.0 dB (median)" in shown


def test_clips_in_one_alone_and_of_other_bytes_are_named(caches, tmp_path, capsys):
    only_b = sorted(ids(caches / "more") - ids(caches / "float16"))
    assert len(only_b) > 3
    assert diff(caches / "float16", caches / "more") == 1
    shown = capsys.readouterr()
    assert f"in b alone: {len(only_b)} clips ({', '.join(only_b[:3])}, …)" in shown.out
    assert "in a alone: 0 clips\n" in shown.out and "of other bytes 0 clips\n" in shown.out
    assert f"differ: 0 fields of their recipes and {len(only_b)} clips" in shown.err
    assert diff(caches / "more", caches / "float16") == 1
    assert f"in a alone: {len(only_b)} clips ({only_b[0]}, " in capsys.readouterr().out


def test_codecs_are_told_apart_by_recipe_bytes_and_distance(caches, capsys):
    assert diff(caches / "float16", caches / "int8", "sample=1") == 1
    shown = capsys.readouterr().out
    assert "recipe: codec\n  a  float16\n  b  int8\n" in shown
    assert "in both: 6 clips, of other bytes 6 clips (" in shown
    snr = float(re.search(r"audio: 6 clips compared, SNR (.*) dB \(median\)", shown)[1])
    assert 30 < snr < 60


def test_a_single_checksum_that_differs_names_its_clip(caches, tmp_path, capsys):
    cache = tmp_path / "cache"
    fill(cache, str(caches / "m"), make_worker(cache), shard_nbytes=600_000)
    path = cache / "index" / "000000.parquet"
    table = pq.read_table(path)
    numbers = [table["audio_crc32"][0].as_py() ^ 1, *table["audio_crc32"][1:].to_pylist()]
    place = table.schema.get_field_index("audio_crc32")
    pq.write_table(table.set_column(place, "audio_crc32", pa.array(numbers, pa.int64())), path)
    assert diff(caches / "float16", cache) == 1
    assert f"of other bytes 1 clip ({table['clip_id'][0].as_py()})" in capsys.readouterr().out


def test_a_damaged_index_and_a_folder_without_cache_are_a_line(caches, tmp_path, capsys):
    assert diff(caches / "float16", tmp_path / "nowhere") == 2
    cache = tmp_path / "cache"
    fill(cache, str(caches / "m"), make_worker(cache))
    path = cache / "index" / "000000.parquet"
    table = pq.read_table(path)
    names = pc.utf8_slice_codeunits(table["clip_id"], 0, 31)
    pq.write_table(table.set_column(0, "clip_id", names), path)
    assert diff(caches / "float16", cache) == 2
    assert "000000.parquet: id '" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["ls", "diff"])
def test_an_index_that_lacks_a_column_or_a_value_is_a_line(caches, tmp_path, verb, capsys):
    cache = tmp_path / "cache"
    fill(cache, str(caches / "m"), make_worker(cache))
    keys = [f"cache={cache}"] if verb == "ls" else [f"a={caches}/float16", f"b={cache}", "sample=1"]
    path = cache / "index" / "000000.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index("audio_width")
    for changed in (
        table.remove_column(place),
        table.set_column(place, "audio_width", pa.nulls(len(table), pa.int32())),
    ):
        pq.write_table(changed, path)
        assert main(["cache", verb, *keys]) == 2
        assert "000000.parquet: " in capsys.readouterr().err
