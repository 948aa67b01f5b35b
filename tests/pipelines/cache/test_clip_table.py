"""Covers pipelines.cache.clip_index, pipelines.cache.clip_table."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.range_server import range_server
from encoders.features import STORED_TYPES
from pipelines import storage
from pipelines.cache import clip_table
from pipelines.cache.clip_index import ClipIndex
from pipelines.cache.index import TAR_BLOCK, index_schema, member_name, write_index
from pipelines.cache.layout import unit_name
from pipelines.cache.read_config import ReadConfig
from pipelines.cache.recipe import Recipe, StreamRecipe, read_recipe, write_recipe
from pipelines.errors import UserError

WIDTHS = {"speech": 8, "audio": 6}


def recipe_of(codec: str) -> Recipe:
    return Recipe({name: StreamRecipe(name, width) for name, width in WIDTHS.items()}, codec, "float32", "sdpa")


def write_unit(cache: Path, unit: int, ids: list[str], rng: np.random.Generator) -> None:
    """Write an index file of clips that are not there."""
    recipe, count = read_recipe(str(cache))[0], len(ids)
    schema = index_schema(recipe)
    columns = {field.name: pa.nulls(count, field.type) for field in schema}
    columns |= {
        "clip_id": pa.array(ids, pa.string()),
        "shard": pa.array([f"{unit_name(unit)}.tar"] * count, pa.string()),
    }
    columns["seconds"] = pa.array(rng.uniform(0.5, 30, count))
    end = 0
    for stream, width in WIDTHS.items():
        frames_N = rng.integers(1, 1500, count)
        columns[f"{stream}_frames"] = pa.array(frames_N, pa.int32())
        columns[f"{stream}_width"] = pa.array([width] * count, pa.int32())
        columns[f"{stream}_dtype"] = pa.array([STORED_TYPES[recipe.codec].dtype] * count, pa.string())
        for part in STORED_TYPES[recipe.codec].parts:
            member = member_name(stream, part)
            row_nbytes = width * (4 if part else STORED_TYPES[recipe.codec].value_nbytes)
            nbytes_N = 128 + row_nbytes * (np.ones_like(frames_N) if part else frames_N)
            offset_N = TAR_BLOCK + np.array([int(clip[:8], 16) for clip in ids], np.int64)
            columns[f"{member}_nbytes"], columns[f"{member}_offset"] = pa.array(nbytes_N), pa.array(offset_N)
            columns[f"{member}_crc32"] = pa.array(rng.integers(0, 2**32, count))
            end = max([end, *(offset_N + nbytes_N).tolist()])
    said = {"recipe": recipe.digest, "shard_nbytes": str(end)}
    table = pa.table([columns[name] for name in schema.names], schema=schema).replace_schema_metadata(said)
    if unit % 2:
        write_index(str(cache), unit, table)
    else:  # as indexes were written before
        storage.write_table(str(cache / "index" / f"{unit_name(unit)}.parquet"), table)


def ids_of(rng: np.random.Generator, count: int) -> list[str]:
    return [rng.bytes(16).hex() for _ in range(count)]


@pytest.fixture(params=["float16", "int8"])
def cache(tmp_path, request, monkeypatch) -> Path:
    """Return a cache of nine units, of which some are as short as can be; its index counts as large."""
    monkeypatch.setattr(clip_table, "SMALL_NBYTES", 0)
    monkeypatch.setattr(clip_table, "SMALL_FILES", 0)
    monkeypatch.setattr(clip_table, "READ_NBYTES", 20_000)
    monkeypatch.setenv("SALMONN_SNAPSHOTS", str(tmp_path / "snapshots"))
    recipe, folder, rng = recipe_of(request.param), tmp_path / "c", np.random.default_rng(3)
    write_recipe(str(folder), recipe, encoders=dict.fromkeys(WIDTHS, "none"), recorded={})
    for unit in (0, 1, 2, 5, 7, 8, 9, 12, 1_000_000):
        write_unit(folder, unit, ids_of(rng, unit % 4 if unit != 12 else 40), rng)
    return folder


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """Return the names of the index files that are read from now on."""
    names: list[str] = []
    original = clip_table.read_index_rows

    def noting(cache, recipe, some, **keys):
        names.extend(some)
        return original(cache, recipe, some, **keys)

    monkeypatch.setattr(clip_table, "read_index_rows", noting)
    return names


def require_right(cache: Path) -> None:
    """Compare an index with its files, and with one that is made without snapshots."""
    index = ClipIndex(str(cache))
    rows = index.rows().to_pylist()
    assert index.num_clips == len(rows) == len(index.seconds)
    ids = [row["clip_id"] for row in rows]
    assert [index.clip_id(position) for position in range(len(rows))] == ids
    assert [index.shard(position) for position in range(len(rows))] == [row["shard"] for row in rows]
    assert index.seconds.tolist() == [row["seconds"] for row in rows]
    assert index.positions([*ids[::-1], "f" * 32, "", ids[0][:-1]]).tolist() == [*range(len(rows))[::-1], -1, -1, -1]
    for position in range(0, len(rows), 7):
        assert index.row(position) == rows[position]
    positions = np.arange(len(rows))
    for stream in WIDTHS:
        assert index.frames_of(stream, positions).tolist() == [row[f"{stream}_frames"] for row in rows]
        for part in STORED_TYPES[index.recipe.codec].parts:
            member = member_name(stream, part)
            places = index.places(member, positions, None)
            assert places.start.tolist() == [row[f"{member}_offset"] for row in rows]
            assert (places.end - places.start).tolist() == [row[f"{member}_nbytes"] for row in rows]
            assert (places.heard_end == places.end).all()
            assert index._columns[f"{member}_crc32"].tolist() == [row[f"{member}_crc32"] for row in rows]
    shards = [row["shard"] for row in rows]
    assert index.shard_numbers().tolist() == [sorted(set(shards), key=shards.index).index(shard) for shard in shards]


def test_the_index_says_what_its_files_say(cache):
    require_right(cache)
    require_right(cache)


def test_files_are_read_by_the_first_process_only(cache, read):
    first = ClipIndex(str(cache))
    assert len(read) == 9
    assert ClipIndex(str(cache)).table.equals(first.table)
    assert len(read) == 9


def test_a_cache_that_grows_is_pruned_or_replaced_is_seen_as_it_is_then(cache, read):
    ClipIndex(str(cache))
    read.clear()
    rng = np.random.default_rng(9)
    write_unit(cache, 13, ids_of(rng, 5), rng)
    write_unit(cache, 3, ids_of(rng, 2), rng)
    ClipIndex(str(cache))
    assert read == ["000003.parquet", "000013.parquet"]  # and no other
    require_right(cache)
    (cache / "index" / "000007.parquet").unlink()
    require_right(cache)
    write_unit(cache, 12, ids_of(rng, 40), rng)
    require_right(cache)


def test_what_is_wrong_in_a_new_file_is_said_with_a_snapshot_too(cache):
    ClipIndex(str(cache))
    path = cache / "index" / "000012.parquet"
    table = pq.read_table(path)
    wrong = table.set_column(table.schema.get_field_index("seconds"), "seconds", pa.array([-1.0] * len(table)))
    pq.write_table(wrong, path)
    with pytest.raises(UserError, match=r"000012\.parquet: clip \w+: seconds is -1\.0"):
        ClipIndex(str(cache))
    names = pa.array([f"{row:031d}x" for row in range(len(table))])
    pq.write_table(table.set_column(table.schema.get_field_index("clip_id"), "clip_id", names), path)
    with pytest.raises(UserError, match="must be 32 hexadecimal digits"):
        ClipIndex(str(cache))


def replace_column(path: Path, name: str, change) -> None:
    table = pq.read_table(path)
    place, column = table.schema.get_field_index(name), table[name]
    pq.write_table(table.set_column(place, table.schema.field(place), pa.array(change(column.to_numpy()))), path)


def test_an_index_of_another_width_is_refused_by_its_bytes_and_a_wrong_width_where_rows_are_read(cache):
    path = cache / "index" / "000012.parquet"
    replace_column(path, "speech_width", lambda width_N: width_N + 1)
    index = ClipIndex(str(cache))
    with pytest.raises(UserError, match=r"speech_width is 9; the recipe says 8"):
        index.rows()
    replace_column(path, "speech_nbytes", lambda nbytes_N: (nbytes_N - 128) // 8 * 9 + 128)
    with pytest.raises(UserError, match=r"000012\.parquet: clip \w+: speech_nbytes is \d+; speech_frames and width"):
        ClipIndex(str(cache))


def test_ids_that_begin_alike_are_told_apart_and_found_by_their_beginning(cache):
    rng = np.random.default_rng(1)
    alike = [f"{'ab' * 8}{number:016x}" for number in (7, 2, 9)]
    write_unit(cache, 20, [*alike, "0" * 32, "f" * 32], rng)
    index = ClipIndex(str(cache))
    last = index.num_clips - 5
    assert index.positions(alike).tolist() == [last, last + 1, last + 2]
    assert index.positions([f"{'ab' * 8}{3:016x}"]).tolist() == [-1]
    assert set(index.positions_from("abababab").tolist()) == {last, last + 1, last + 2}
    assert index.positions_from(alike[1][:20] + alike[1][20:]).tolist() == [last + 1]
    assert set(index.positions_from("").tolist()) == set(range(index.num_clips))
    assert len(index.positions_from("x")) == len(index.positions_from("ab" * 17)) == 0
    assert last + 3 in index.positions_from("0000") and last + 4 in index.positions_from("ffff")


def test_of_a_clip_that_is_there_twice_the_first_is_found(cache):
    rng = np.random.default_rng(1)
    twice = ClipIndex(str(cache)).clip_id(4)
    write_unit(cache, 21, [twice, "1" * 32], rng)
    assert ClipIndex(str(cache)).positions([twice]).tolist() == [4]


def test_the_share_that_is_verified_is_the_one_asked_for(cache):
    rng = np.random.default_rng(1)
    write_unit(cache, 22, ids_of(rng, 4000), rng)

    def verified(fraction: float) -> np.ndarray:
        index = ClipIndex(str(cache), ReadConfig(verify_fraction=fraction))
        return index.are_verified(np.arange(index.num_clips))

    assert verified(1.0).all() and not verified(0.0).any()
    assert verified(0.25).mean() == pytest.approx(0.25, abs=0.03)
    assert (verified(0.25) <= verified(0.5)).all()


def test_an_object_stores_index_is_fetched_once_for_a_machine(cache, monkeypatch, read):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with range_server(cache.parent) as server:
        remote = ClipIndex(server.uri("c"))
        assert len(read) == 9
        assert ClipIndex(server.uri("c")).table.equals(remote.table)
        assert len(read) == 9
    assert remote.table.select(["id_high", "id_low"]).equals(ClipIndex(str(cache)).table.select(["id_high", "id_low"]))


READER = """
import sys, time
import numpy as np
from pipelines.cache import clip_table
from pipelines.cache.clip_index import ClipIndex
from pipelines.errors import MissingError
clip_table.SMALL_NBYTES = 0
opened, end = 0, time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    try:
        index = ClipIndex(sys.argv[1])
    except MissingError:  # a file went while it was read
        continue
    rows = np.arange(index.num_clips)
    ids = [index.clip_id(row) for row in rows]
    starts = index.places("speech", rows, None).start
    assert starts.tolist() == [512 + int(one[:8], 16) for one in ids], "a row is not of its clip"
    assert index.positions(ids).tolist() == rows.tolist()
    opened += 1
print(opened)
"""


def test_readers_see_right_rows_while_units_come_go_and_change_and_snapshots_are_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("SALMONN_SNAPSHOTS", str(tmp_path / "snapshots"))
    cache, rng, seconds = tmp_path / "c", np.random.default_rng(5), 5.0
    write_recipe(str(cache), recipe_of("float16"), encoders=dict.fromkeys(WIDTHS, "none"), recorded={})
    for unit in range(30):
        write_unit(cache, unit, ids_of(rng, 20), rng)
    command = [sys.executable, "-c", READER, str(cache), str(seconds)]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    end, damaged = time.monotonic() + seconds + 2, 0
    while time.monotonic() < end:
        unit = int(rng.integers(0, 40))
        path = cache / "index" / f"{unit_name(unit)}.parquet"
        match int(rng.integers(0, 4)):
            case 0:
                path.unlink(missing_ok=True)
            case 1:
                write_unit(cache, unit, ids_of(rng, int(rng.integers(0, 30))), rng)
            case _:
                for kept in (tmp_path / "snapshots").glob("index-*.arrow"):
                    data = bytearray(kept.read_bytes() if kept.exists() else b"x")
                    data[int(rng.integers(0, len(data)))] ^= 1 << int(rng.integers(0, 8))
                    kept.with_suffix(".damaged").write_bytes(data[: len(data) - int(rng.integers(0, 2)) * 100])
                    kept.with_suffix(".damaged").replace(kept)
                    damaged += 1
        time.sleep(0.02)
    opened = [int(reader.communicate(timeout=60)[0]) for reader in readers]
    assert [reader.returncode for reader in readers] == [0, 0]
    assert min(opened) > 5 and damaged > 5
