"""Covers pipelines.cache.tools.copy, pipelines.cache.tools.encode_anew, pipelines.cache.tools.info,
pipelines.cache.tools.ls, pipelines.cache.tools.nearness, pipelines.cache.tools.prune, pipelines.cache.tools.show,
pipelines.cache.tools.verify.
"""

import hashlib
import json
import os
import re
import shutil
import tarfile
import zlib
from pathlib import Path

import matplotlib.image
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
import webdataset

from cluster.unit_queue import Attempt
from pipelines import storage
from pipelines.cache.index import committed_units, read_rejects
from pipelines.cache.plan import count_planned_clips, count_units, extend_plan, read_units
from pipelines.cache.reader import FeatureCache
from pipelines.cache.tools.show import channel_bands
from pipelines.cli import main
from pipelines.manifest.tables import read_clips, read_examples
from pipelines.manifest.writer import ManifestWriter
from tests.pipelines.builders import fill, make_worker, prepare_tones, shard_digests

SMALL = "shard_megabytes=1"  # two clips


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> str:
    """Nine clips, the last one damaged; shards of two."""
    return prepare_tones(tmp_path_factory.mktemp("tones"), num_clips=9, damaged=1)


def part_of(tones, folder, numbers) -> str:
    """A manifest of some of the clips."""
    clips = [clip for number, clip in enumerate(read_clips(tones)) if number in numbers]
    names = {clip.clip_id for clip in clips}
    with ManifestWriter(str(folder), append=False) as writer:
        for clip in clips:
            writer.add_clip(clip)
        for example in read_examples(tones):
            if example.clip_id in names:
                writer.add_example(example)
    return str(folder)


def cache_of(folder, *manifests, codec="float16"):
    worker = make_worker(folder, codec=codec)
    for manifest in manifests:
        fill(folder, manifest, worker, shard_nbytes=1_000_000)
    return folder


@pytest.fixture(scope="module")
def whole(tones, tmp_path_factory):
    return cache_of(tmp_path_factory.mktemp("whole"), tones)


@pytest.fixture
def cache(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "cache")


def ids(manifest) -> list[str]:
    return [clip.clip_id for clip in read_clips(manifest)]


def held(cache) -> list[str]:
    return FeatureCache(str(cache)).rows()["clip_id"].to_pylist()


def assert_valid(cache, capsys):
    assert main(["cache", "verify", f"cache={cache}"]) == 0
    assert " 0 faults" in capsys.readouterr().out


def add_what_is_missing(cache, manifest) -> int:
    """Do what an extraction does, without Ray; return how many clips it encoded."""
    worker = make_worker(cache.parent / f"worker-{len(list(cache.parent.iterdir()))}")
    config = worker.config.__class__(**{**vars(worker.config), "cache": str(cache)})
    worker.config = config
    before = committed_units(str(cache))
    extend_plan(str(cache), read_clips(manifest), recipe=config.recipe, shard_nbytes=1_000_000)
    encoded = [worker.run(unit, Attempt()).shard for unit in read_units(str(cache), skip=before)]
    assert committed_units(str(cache)) == set(range(count_units(str(cache))))
    return sum(shard.clips + shard.rejects for shard in encoded)


# verify


def test_sound_cache_has_no_faults(cache, capsys):
    assert_valid(cache, capsys)
    assert main(["cache", "verify", f"cache=file://{cache}", "sample=0.5"]) == 0
    assert "MB/s" in capsys.readouterr().out


def plan_twice(cache, *, encode=True):
    """Leave what two jobs left that planned the same clips at once, of which both encoded all."""
    first = pq.read_table(cache / "units" / "000000.parquet")
    units = count_units(str(cache))
    again = first.set_column(0, "unit", pc.add(first["unit"], units))
    pq.write_table(again, cache / "units" / f"{units:06d}.parquet")
    for unit in range(units if encode else 0):
        for folder, ending in (("shards", "tar"), ("index", "parquet"), ("rejects", "parquet")):
            there = cache / folder / f"{unit:06d}.{ending}"
            if there.exists():
                shutil.copy(there, cache / folder / f"{unit + units:06d}.{ending}")


@pytest.mark.parametrize("encode", [True, False])
def test_clips_that_two_jobs_planned_are_found_and_mended(cache, whole, tones, capsys, encode):
    before = held(cache)
    plan_twice(cache, encode=encode)
    assert main(["cache", "verify", f"cache={cache}"]) == 1
    shown = capsys.readouterr()
    for clip in ids(tones):
        assert re.search(rf"clip {clip} is planned 2 times, in 00000\d, 00000\d", shown.out)
    assert "salmonn cache prune with apply=true leaves" in shown.err
    assert main(["cache", "prune", f"cache={cache}", "apply=true"]) == 0
    assert_valid(cache, capsys)
    assert held(cache) == before and count_planned_clips(str(cache)) == 9
    assert shard_digests(cache) == shard_digests(whole)
    assert add_what_is_missing(cache, tones) == 0


def damage_array(cache):
    row = FeatureCache(str(cache)).rows().slice(3, 1).to_pylist()[0]
    flip(cache / "shards" / row["shard"], row["speech_offset"] + 5_000)


def damage_json(cache):
    with tarfile.open(cache / "shards" / "000001.tar") as tar:
        offset = next(member.offset_data for member in tar if member.name.endswith(".json"))
    flip(cache / "shards" / "000001.tar", offset + 3)


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def shorten(cache):
    os.truncate(cache / "shards" / "000001.tar", 700_000)


def shift_index(cache):
    path = cache / "index" / "000001.parquet"
    table = pq.read_table(path)
    offsets = [offset + 512 for offset in table["audio_offset"].to_pylist()]
    place = table.column_names.index("audio_offset")
    pq.write_table(table.set_column(place, table.schema.field(place), [offsets]), path)


def forget_a_clip(cache):
    path = cache / "index" / "000001.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        (damage_array, "shards/000001.tar: speech of clip"),
        (damage_json, "shards/000001.tar: bytes between its arrays are damaged"),
        (shorten, "shards/000001.tar: has 700000 bytes, its index says"),
        (shift_index, "shards/000001.tar: at "),
        (forget_a_clip, "index/000001.parquet: clip {id} is planned, but neither encoded nor rejected"),
        (lambda cache: (cache / "shards" / "000001.tar").unlink(), "shards/000001.tar: is not there"),
        (lambda cache: (cache / "index" / "000001.parquet").unlink(), "units: shard 000001 is planned and not there"),
        (lambda cache: (cache / "index" / "000001.parquet").write_bytes(b"x"), "index/000001.parquet: "),
        (lambda cache: (cache / "units" / "000000.parquet").unlink(), "is not in the plan of this shard"),
        (lambda cache: shutil.rmtree(cache / "rejects"), "is planned, but neither encoded nor rejected"),
    ],
)
def test_every_kind_of_harm_is_a_line_and_exit_code_1(cache, tones, capsys, harm, line):
    harm(cache)
    assert main(["cache", "verify", f"cache={cache}"]) == 1
    shown = capsys.readouterr()
    assert line.format(id=ids(tones)[2]) in shown.out and " fault" in shown.err


@pytest.mark.parametrize("harm", [damage_array, damage_json, shorten, shift_index, forget_a_clip])
def test_what_is_broken_is_made_again_and_nothing_else_is_touched(cache, whole, tones, capsys, harm):
    harm(cache)
    before = {
        path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file() and "000001" not in path.name
    }
    assert main(["cache", "verify", f"cache={cache}", "repair=true"]) == 1
    assert (
        "1 shard taken out of the index, which salmonn extract with the same keys makes anew" in capsys.readouterr().err
    )
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert add_what_is_missing(cache, tones) > 0
    assert shard_digests(cache) == shard_digests(whole)
    assert main(["cache", "verify", f"cache={cache}", "repair=true"]) == 0


def test_shards_of_another_recipe_are_faults(cache, tones, tmp_path, capsys):
    other = cache_of(tmp_path / "other", part_of(tones, tmp_path / "m", [0]), codec="int8")
    shutil.copy(other / "recipe.json", cache / "recipe.json")
    assert main(["cache", "verify", f"cache={cache}"]) == 1
    assert "its columns are not those of the recipe" in capsys.readouterr().out


def test_a_sample_reads_less_and_overlooks_what_it_does_not_read(cache, capsys):
    damage_array(cache)
    assert main(["cache", "verify", f"cache={cache}", "sample=0"]) == 0
    assert " 0 clips read" in capsys.readouterr().out


def forge(cache, number=3):
    """Change an array and make checksum and index agree with it, as an encoder's fault would."""
    row = FeatureCache(str(cache)).row(number)
    shard = cache / "shards" / row["shard"]
    data, start = bytearray(shard.read_bytes()), row["audio_offset"]
    end = start + row["audio_nbytes"]
    data[start + 128 : end] = np.frombuffer(data[start + 128 : end], np.float16)[::-1].tobytes()
    shard.chmod(0o644)
    shard.write_bytes(data)
    uri = cache / "index" / f"{row['shard'].partition('.')[0]}.parquet"
    table = pq.read_table(uri)
    rows = table.to_pylist()
    forged = next(one for one in rows if one["clip_id"] == row["clip_id"])
    forged["audio_crc32"] = zlib.crc32(data[start:end])
    about = {**table.schema.metadata, b"shard_sha256": hashlib.sha256(data).hexdigest().encode()}
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema.with_metadata(about)), uri)
    return row["clip_id"]


def test_clips_encoded_anew_are_those_that_are_stored(cache, capsys):
    assert main(["cache", "verify", f"cache={cache}", "encode=true", "device=cpu"]) == 0
    shown = capsys.readouterr().out
    assert "speech: 8 clips compared, SNR 150.0 dB (median), 150.0 dB (lowest); worst cosine 1.000000" in shown
    assert "audio: 8 clips compared" in shown


def test_int8_of_sound_alone_is_compared_as_it_is_stored(tones, tmp_path, capsys):
    worker = make_worker(tmp_path / "cache", codec="int8", speech_frames="heard")
    fill(tmp_path / "cache", tones, worker)
    assert main(["cache", "verify", f"cache={tmp_path}/cache", "encode=true", "sample=0.5"]) == 0
    assert "speech: 3 clips compared, SNR 150.0 dB (median)" in capsys.readouterr().out


def test_a_wrong_array_with_a_right_checksum_is_found_by_encoding_alone(cache, capsys):
    clip = forge(cache)
    assert_valid(cache, capsys)
    assert main(["cache", "verify", f"cache={cache}", "encode=true"]) == 1
    shown = capsys.readouterr()
    assert re.search(rf"clip {clip} \(.*\.wav\): audio has an SNR of -?\d+\.\d dB, worst cosine", shown.out)
    assert shown.err.count("\n") == 1 and "1 of 8 clips are not what their recordings give today" in shown.err
    assert main(["cache", "verify", f"cache={cache}", "encode=true", "tolerance_db=-150"]) == 0


def test_recordings_that_changed_or_went_are_told_from_wrong_features(tmp_path, capsys):
    manifest = prepare_tones(tmp_path)
    cache = cache_of(tmp_path / "cache", manifest)
    first, second = [segment.recording for clip in list(read_clips(manifest))[:2] for segment in clip.located()]
    samples, rate = soundfile.read(first)
    soundfile.write(first, samples[::-1], rate)
    Path(second).unlink()
    assert main(["cache", "verify", f"cache={cache}", "encode=true"]) == 1
    shown = capsys.readouterr()
    assert "its recording has changed since" in shown.out
    assert re.search(r"clip \w{32} cannot be encoded anew: .*no such file", shown.out)
    assert "2 of 12 clips" in shown.err


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["beats=none"], "streams.audio"),
        (["sample=0"], "sample=0: has no clip of this cache"),
        (["repair=true"], "repair=true is a command of its own"),
        (["whisper=/nowhere"], "/nowhere"),
    ],
)
def test_what_cannot_be_encoded_anew_is_refused(whole, keys, message, capsys):
    assert main(["cache", "verify", f"cache={whole}", "encode=true", *keys]) == 2
    assert message in capsys.readouterr().err


def test_a_cache_does_not_choose_which_code_runs(cache, capsys):
    about = json.loads((cache / "recipe.json").read_text())
    about["encoders"]["audio"] = "os:abort"
    (cache / "recipe.json").write_text(json.dumps(about))
    assert main(["cache", "verify", f"cache={cache}", "encode=true"]) == 2
    assert "names os:abort as its encoder, which is code to be run; beats=os:abort allows it" in capsys.readouterr().err


def test_what_belongs_to_no_shard_is_listed_and_no_fault(cache, capsys):
    (cache / "shards" / "000077.tar").write_bytes(b"no tar")
    (cache / "shards" / ".tmp-1-000078.tar").write_bytes(b"")
    assert main(["cache", "verify", f"cache={cache}"]) == 0
    shown = capsys.readouterr().out
    assert "shards/000077.tar: belongs to no shard" in shown and "shards/.tmp-1-000078.tar" in shown


# ls, show


def test_clips_are_listed_and_chosen_by_shard_corpus_and_beginning(whole, tones, capsys):
    def listed(*keys) -> list[str]:
        assert main(["cache", "ls", f"cache={whole}", *keys]) == 0
        return [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:-1]]

    names, second = ids(tones), list(read_units(str(whole)))[1]
    assert listed() == names[:8] and listed("limit=3") == names[:3]
    assert listed("shard=1") == [clip.clip_id for clip in second.clips]
    assert listed(f"clip={names[4][:9]}") == [names[4]]
    assert listed("corpus=table") == names[:8] and listed("corpus=other") == []
    assert main(["cache", "ls", f"cache={whole}", "shard=99"]) == 2


def test_a_line_tells_seconds_frames_and_bytes(whole, capsys):
    main(["cache", "ls", f"cache={whole}", "limit=1"])
    header, line, end = capsys.readouterr().out.splitlines()
    row = FeatureCache(str(whole)).rows().slice(0, 1).to_pylist()[0]
    nbytes = row["speech_nbytes"] + row["audio_nbytes"]
    assert line.split()[2:6] == ["1.00", str(row["audio_frames"]), str(row["speech_frames"]), f"{nbytes / 1e3:.1f}"]
    assert header.index("audio frames") < header.index("speech frames") and "there are more" in end


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_clip_is_drawn_the_same_each_time(whole, tones, tmp_path, ending):
    pictures = [tmp_path / f"{name}.{ending}" for name in "ab"]
    for picture in pictures:
        assert main(["cache", "show", f"cache={whole}", f"clip={ids(tones)[2][:8]}", f"out={picture}"]) == 0
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    if ending == "png":
        pixels = matplotlib.image.imread(pictures[0])
        assert pixels.shape[1] > 1_500 and pixels[..., :3].std() > 0.1


def test_a_clip_is_drawn_when_its_recording_is_gone_or_changed(tmp_path, capsys):
    manifest = prepare_tones(tmp_path / "t", num_clips=2)
    cache = cache_of(tmp_path / "c", manifest)
    words = ["cache", "show", f"cache={cache}", f"clip={ids(manifest)[0]}", f"out={tmp_path}/a.png"]
    recording = tmp_path / "t" / "audio" / "tone-0.wav"
    shutil.copy(tmp_path / "t" / "audio" / "tone-1.wav", recording)
    assert main(words) == 0 and "the recording has changed" in capsys.readouterr().out
    recording.unlink()
    assert main(words) == 0 and "no wave" in capsys.readouterr().out
    assert (tmp_path / "a.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["clip=", "out=a.png"], "8 clips begin so"),
        (["clip=xyz", "out=a.png"], "holds no such clip"),
        (["clip=a", "out=a.gif"], "must end in .png or .svg"),
    ],
)
def test_clips_that_cannot_be_drawn_are_refused(whole, keys, message, capsys):
    assert main(["cache", "show", f"cache={whole}", *keys]) == 2
    assert message in capsys.readouterr().err


def test_channels_that_vary_alike_come_to_lie_side_by_side():
    generator = torch.Generator().manual_seed(0)
    courses_T2 = torch.randn(200, 2, generator=generator)
    groups_C = torch.arange(256) % 2
    frames_TC = courses_T2[:, groups_C] + 0.05 * torch.randn(200, 256, generator=generator)
    bands_TB = channel_bands(frames_TC)
    assert bands_TB.shape == (200, 128)
    likeness = (bands_TB[:, 1:] * bands_TB[:, :-1]).mean(dim=0)
    assert (likeness > 0.9).sum() >= 124  # but for where the groups meet


# export


def test_export_of_everything_gives_the_same_shards(whole, tones, tmp_path, capsys):
    assert main(["cache", "export", f"cache={whole}", f"out={tmp_path}/e", f"manifest={tones}", SMALL]) == 0
    assert shard_digests(tmp_path / "e") == shard_digests(whole)
    assert_valid(tmp_path / "e", capsys)


def test_exported_selection_has_the_bytes_that_its_extraction_would_give(whole, tones, tmp_path, capsys):
    names = ids(tones)
    chosen = f"clips=[{names[5]},{names[1]},{names[2]}]"
    assert main(["cache", "export", f"cache={whole}", f"out=file://{tmp_path}/e", chosen, SMALL]) == 0
    alone = cache_of(tmp_path / "alone", part_of(tones, tmp_path / "m", [1, 2, 5]))
    assert held(tmp_path / "e") == [names[1], names[2], names[5]]
    for one, other in zip(range(3), range(3), strict=True):
        exported, extracted = FeatureCache(str(tmp_path / "e")).read(one), FeatureCache(str(alone)).read(other)
        assert all(torch.allclose(exported[name], extracted[name], atol=2e-3) for name in exported)
    samples = list(webdataset.WebDataset(f"{tmp_path}/e/shards/{{000000..000001}}.tar", shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == held(tmp_path / "e")
    assert_valid(tmp_path / "e", capsys)


def test_export_selects_by_split_and_task(whole, tones, tmp_path, capsys):
    words = ["cache", "export", f"cache={whole}", f"manifest={tones}"]
    assert main([*words, f"out={tmp_path}/e", "splits=test", "tasks=audiocaption"]) == 0
    tests = [example.clip_id for example in read_examples(tones) if example.split == "test"]
    assert held(tmp_path / "e") == tests
    assert main([*words, f"out={tmp_path}/f", "splits=dev"]) == 2
    assert "splits=['dev']" in capsys.readouterr().err and not (tmp_path / "f").exists()


def test_rejected_clips_stay_rejected_and_extract_finds_nothing_to_do(whole, tones, tmp_path):
    main(["cache", "export", f"cache={whole}", f"out={tmp_path}/e", f"manifest={tones}", SMALL])
    units = committed_units(str(tmp_path / "e"))
    assert read_rejects(str(tmp_path / "e"), units).equals(read_rejects(str(whole), committed_units(str(whole))))
    assert add_what_is_missing(tmp_path / "e", tones) == 0


def test_extract_adds_to_an_exported_cache_what_was_not_selected(whole, tones, tmp_path, capsys):
    main(["cache", "export", f"cache={whole}", f"out={tmp_path}/e", f"clips={ids(tones)[3]}"])
    assert add_what_is_missing(tmp_path / "e", tones) == 8
    assert_valid(tmp_path / "e", capsys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([], "either clips=… or manifest=…"),
        (["clips=absent"], "holds no features of clip absent"),
        (["clips=absent", "splits=test"], "choose among a manifest's clips"),
        (["manifest=absent"], "absent: no manifest there"),
    ],
)
def test_selections_that_mean_nothing_are_refused(whole, tmp_path, keys, message, capsys):
    assert main(["cache", "export", f"cache={whole}", f"out={tmp_path}/e", *keys]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "e").exists()


def test_damaged_clip_is_not_copied(cache, tones, tmp_path, capsys):
    damage_array(cache)
    assert main(["cache", "export", f"cache={cache}", f"out={tmp_path}/e", f"manifest={tones}", SMALL]) == 2
    assert f"speech of clip {ids(tones)[3]} is damaged" in capsys.readouterr().err
    assert 1 not in committed_units(str(tmp_path / "e"))


# merge


@pytest.fixture(scope="module")
def halves(tones, tmp_path_factory):
    """Two caches that share clips 3 and 4, and both manifests."""
    folder = tmp_path_factory.mktemp("halves")
    first, second = part_of(tones, folder / "m1", range(5)), part_of(tones, folder / "m2", range(3, 9))
    return cache_of(folder / "a", first), cache_of(folder / "b", second), first, second


def test_merged_cache_plans_and_holds_what_one_cache_of_both_manifests_would(halves, tones, tmp_path, capsys):
    first, second, *manifests = halves
    out = tmp_path / "merged"
    assert main(["cache", "merge", f"caches=[{first},{second}]", f"out={out}", SMALL]) == 0
    one = cache_of(tmp_path / "one", *manifests)
    assert list(read_units(str(out))) == list(read_units(str(one)))
    assert held(out) == held(one) == ids(tones)[:8]
    assert count_planned_clips(str(out)) == 9
    assert_valid(out, capsys)
    assert add_what_is_missing(out, tones) == 0


def test_merging_is_deterministic_and_continues_where_it_was_killed(halves, tmp_path):
    first, second, *_ = halves
    for name in ("one", "other"):
        main(["cache", "merge", f"caches=[{first},{second}]", f"out={tmp_path}/{name}", SMALL])
    expected = shard_digests(tmp_path / "one")
    assert expected == shard_digests(tmp_path / "other")
    for lost in ("index/000001.parquet", "index/000003.parquet", "shards/000003.tar"):
        (tmp_path / "one" / lost).unlink()
    kept = (tmp_path / "one" / "shards" / "000000.tar").stat().st_mtime_ns
    assert main(["cache", "merge", f"caches=[{first},{second}]", f"out={tmp_path}/one", SMALL]) == 0
    assert shard_digests(tmp_path / "one") == expected
    assert (tmp_path / "one" / "shards" / "000000.tar").stat().st_mtime_ns == kept


def test_a_cache_fills_another_that_an_extraction_has_begun(whole, tones, tmp_path, capsys):
    worker = make_worker(tmp_path / "begun")
    begun = str(tmp_path / "begun")
    extend_plan(begun, read_clips(tones), recipe=worker.config.recipe, shard_nbytes=1_000_000)
    worker.run(next(iter(read_units(begun))), Attempt())
    assert main(["cache", "merge", f"caches={whole}", f"out={begun}"]) == 0
    assert shard_digests(tmp_path / "begun") == shard_digests(whole)


def test_units_with_clips_of_no_source_are_left_to_extract(halves, tones, tmp_path, capsys):
    worker, begun = make_worker(tmp_path / "begun"), str(tmp_path / "begun")
    extend_plan(begun, read_clips(tones), recipe=worker.config.recipe, shard_nbytes=1_000_000)
    assert main(["cache", "merge", f"caches={halves[0]}", f"out={begun}"]) == 0
    assert "shards hold clips of no source; salmonn extract encodes them" in capsys.readouterr().out
    assert committed_units(begun) == {0, 1}


def test_clip_rejected_here_and_encoded_there_counts_as_encoded(tones, tmp_path, capsys):
    mended = prepare_tones(tmp_path / "mended", num_clips=9)
    bad = cache_of(tmp_path / "bad", part_of(tones, tmp_path / "m1", [7, 8]))
    good = cache_of(tmp_path / "good", part_of(mended, tmp_path / "m2", [8]))
    assert main(["cache", "merge", f"caches=[{bad},{good}]", f"out={tmp_path}/e"]) == 0
    assert held(tmp_path / "e") == ids(tones)[7:] and not (tmp_path / "e" / "rejects").exists()
    assert_valid(tmp_path / "e", capsys)


def test_caches_of_two_recipes_are_not_merged(whole, tones, tmp_path, capsys):
    other = cache_of(tmp_path / "other", part_of(tones, tmp_path / "m", [0]), codec="int8")
    assert main(["cache", "merge", f"caches=[{whole},{other}]", f"out={tmp_path}/e"]) == 2
    assert "codec is 'int8' there and 'float16' here" in capsys.readouterr().err
    assert main(["cache", "merge", f"caches={whole}", f"out={other}"]) == 2
    assert main(["cache", "merge", "caches=[]", f"out={other}"]) == 2


def test_int8_scales_are_copied_too(tones, tmp_path, capsys):
    source = cache_of(tmp_path / "c", part_of(tones, tmp_path / "m", [0, 1]), codec="int8")
    assert main(["cache", "merge", f"caches={source}", f"out={tmp_path}/e", SMALL]) == 0
    assert shard_digests(tmp_path / "e") == shard_digests(source)


# prune


def prune(cache, *manifests, keys=("apply=true", "min_waste=0")) -> int:
    return main(["cache", "prune", f"cache={cache}", f"manifest=[{','.join(manifests)}]", *keys])


def test_without_apply_nothing_is_changed(cache, tones, tmp_path, capsys):
    (cache / "shards" / "000077.tar").write_bytes(b"stray")
    before = {path: path.stat().st_mtime_ns for path in sorted(cache.rglob("*"))}
    assert prune(cache, part_of(tones, tmp_path / "m", [0]), keys=()) == 0
    shown = capsys.readouterr().out
    assert "would be removed; apply=true does it" in shown and "shards/000077.tar: would be removed" in shown
    assert before == {path: path.stat().st_mtime_ns for path in sorted(cache.rglob("*"))}


@pytest.mark.parametrize("kept", [[0], [4], [8], [0, 1, 2, 5, 6, 7], [1, 3, 5, 7], list(range(8))])
def test_pruned_clips_go_the_others_keep_their_bytes_and_extract_encodes_them_again(
    cache, whole, tones, tmp_path, kept, capsys
):
    manifest = part_of(tones, tmp_path / "m", kept)
    assert prune(cache, manifest) == 0
    names = ids(tones)
    assert held(cache) == [names[number] for number in kept if number != 8]
    assert_valid(cache, capsys)
    before, after = FeatureCache(str(whole)), FeatureCache(str(cache))
    for row, position in enumerate(before.positions(held(cache))):
        assert torch.equal(after.read(row)["speech"], before.read(int(position))["speech"])
    assert add_what_is_missing(cache, manifest) == 0
    assert add_what_is_missing(cache, tones) == 9 - len(kept)
    assert sorted(held(cache)) == sorted(names[:8])
    assert_valid(cache, capsys)


def test_several_manifests_together_say_what_stays(cache, tones, tmp_path):
    assert prune(cache, *[part_of(tones, tmp_path / f"m{number}", [number]) for number in (0, 6)]) == 0
    assert held(cache) == [ids(tones)[0], ids(tones)[6]]


def test_shards_with_little_waste_are_left_as_they_are(cache, whole, tones, tmp_path):
    manifest = part_of(tones, tmp_path / "m", [1, 2, 3, 4, 5, 6, 7, 8])
    assert prune(cache, manifest, keys=("apply=true", "min_waste=0.6")) == 0
    assert shard_digests(cache) == shard_digests(whole)
    assert prune(cache, manifest, keys=("apply=true", "min_waste=0.5")) == 0
    assert held(cache) == ids(tones)[1:8]


def test_pruning_that_was_killed_before_the_plan_is_finished_by_the_same_command(cache, tones, tmp_path, capsys):
    plan = (cache / "units" / "000000.parquet").read_bytes()
    manifest = part_of(tones, tmp_path / "m", [0, 4])
    prune(cache, manifest)
    expected = {path.name: path.read_bytes() for path in cache.rglob("*.parquet")}
    (cache / "units" / "000000.parquet").write_bytes(plan)
    assert main(["cache", "verify", f"cache={cache}"]) == 1
    assert prune(cache, manifest) == 0
    assert {path.name: path.read_bytes() for path in cache.rglob("*.parquet")} == expected
    assert_valid(cache, capsys)


def test_units_never_encoded_lose_their_unwanted_clips_too(tones, tmp_path, capsys):
    worker, cache = make_worker(tmp_path / "c"), tmp_path / "c"
    extend_plan(str(cache), read_clips(tones), recipe=worker.config.recipe, shard_nbytes=1_000_000)
    manifest = part_of(tones, tmp_path / "m", [5])
    assert prune(cache, manifest) == 0
    assert add_what_is_missing(cache, manifest) == 1 and held(cache) == [ids(tones)[5]]
    assert_valid(cache, capsys)


def test_strays_are_removed(cache, tones):
    for stray in ("shards/000077.tar", "rejects/000077.parquet", "shards/.tmp-1-000078.tar"):
        (cache / stray).write_bytes(b"x")
    os.utime(cache / "shards" / ".tmp-1-000078.tar", (0, 0))
    assert prune(cache, tones) == 0
    assert not list(cache.glob("*/*77*")) and not list(cache.glob("*/.tmp*"))


def test_cache_that_a_job_writes_to_is_left_alone(cache, tones, tmp_path, capsys):
    before = shard_digests(cache)
    (cache / "shards" / ".tmp-1-000004.tar").write_bytes(b"being written")
    assert prune(cache, part_of(tones, tmp_path / "m", [0])) == 2
    assert "a job seems to be at work" in capsys.readouterr().err
    assert shard_digests(cache) == before


def test_cache_that_another_job_holds_is_left_alone(cache, tones, tmp_path, capsys):
    before = shard_digests(cache)
    words = ["cache", "merge", f"caches={cache}", SMALL]
    with storage.held(str(cache)), storage.held(str(tmp_path / "out")):
        assert prune(cache, part_of(tones, tmp_path / "m", [0])) == 2
        assert "another job is at work there (process " in capsys.readouterr().err
        assert main([*words, f"out={tmp_path}/out"]) == 2
        assert "another job is at work there" in capsys.readouterr().err
        assert prune(cache, part_of(tones, tmp_path / "m2", [0]), keys=()) == 0
    assert shard_digests(cache) == before
    assert main([*words, f"out={tmp_path}/out"]) == 0


def test_manifest_that_names_no_clip_of_the_cache_is_taken_for_a_mistake(cache, tmp_path, capsys):
    other = prepare_tones(tmp_path / "other", num_clips=1)
    content = [clip.__class__(**{**vars(clip), "clip_id": "0" * 32}) for clip in read_clips(other)]
    with ManifestWriter(str(tmp_path / "m"), append=False) as writer:
        writer.add_clip(content[0])
    assert prune(cache, str(tmp_path / "m")) == 2
    assert "nothing would remain" in capsys.readouterr().err
    assert json.loads(storage.read_bytes(str(cache / "recipe.json")))


# info


def test_bytes_on_disk_are_told_by_kind_and_leftovers_apart(cache, capsys):
    def on_disk() -> str:
        assert main(["cache", "info", f"cache={cache}"]) == 0
        return capsys.readouterr().out.partition("on disk    ")[2]

    shards = sum(path.stat().st_size for path in (cache / "shards").iterdir())
    assert on_disk().startswith(f"shards {shards / 1e6:.1f}, index ") and "leftover file" not in on_disk()
    (cache / "shards" / "000099.tar").write_bytes(bytes(2_000_000))
    (cache / "shards" / ".tmp-x").write_bytes(bytes(1_000_000))
    shown = on_disk()
    assert shown.startswith(f"shards {shards / 1e6:.1f}, index ") and "leftovers 3.0 MB" in shown
    assert "2 leftover files: salmonn cache prune apply=true removes them" in shown
