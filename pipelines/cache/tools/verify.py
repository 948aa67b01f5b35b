"""`salmonn cache verify`: whether a feature cache is what its index, its plan and its recipe say."""

import hashlib
import tarfile
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa

from pipelines import storage
from pipelines.cache.bounds import check_unit
from pipelines.cache.index import (
    TAR_BLOCK,
    check_member,
    committed_units,
    index_schema,
    member_names,
    read_index,
    read_rejects,
    shard_nbytes,
)
from pipelines.cache.layout import find_orphans, unit_name
from pipelines.cache.plan import ExtractUnit, read_units, repeated_clips
from pipelines.cache.recipe import Recipe, read_recipe
from pipelines.cache.tools.config import CacheVerifyConfig
from pipelines.errors import JobIncompleteError, UserError
from pipelines.interface.words import counted
from pipelines.storage.threads import run_threads

READ_NBYTES = 4_194_304


@dataclass(frozen=True)
class _Checked:
    unit: int
    faults: Sequence[str]
    clips: int
    nbytes: int


def cache_verify(config: CacheVerifyConfig) -> None:
    """Compare plan, index, rejects and shards; print a line per fault, and what belongs to no shard.

    One array per thread is in memory, and the ids of its unit; and 24 bytes for each planned clip.

    Raises:
        FileNotFoundError: If there is no cache.
        UserError: If recipe.json is damaged, or shards are to be repaired while another job writes to the cache, or as
            `encode_anew`.
        JobIncompleteError: If there is any fault, or was.
    """
    with storage.held(config.cache) if config.repair else nullcontext():
        _verify(config)
        if config.encode:
            from pipelines.cache.tools.encode_anew import encode_anew  # loads PyTorch, which the rest does without

            encode_anew(config)


def _verify(config: CacheVerifyConfig) -> None:
    start = time.perf_counter()
    recipe, _ = read_recipe(config.cache)
    committed = committed_units(config.cache)
    repeated = repeated_clips(config.cache)
    for clip, units in repeated.items():
        print(f"units: clip {clip} is planned {len(units)} times, in {', '.join(map(unit_name, units))}")
    faults, clips, nbytes, faulty = len(repeated), 0, 0, []
    for checked in run_threads(
        lambda unit: _check_unit(config, recipe, unit, committed),
        _all_units(config.cache, committed),
        threads=config.threads,
    ):
        for fault in checked.faults:
            print(fault)
        if checked.faults and checked.unit in committed:
            faulty.append(checked.unit)
        faults, clips, nbytes = faults + len(checked.faults), clips + checked.clips, nbytes + checked.nbytes
    for orphan in find_orphans(config.cache, committed):
        print(f"{orphan}: belongs to no shard and is never read; salmonn cache prune apply=true removes it")
    seconds = time.perf_counter() - start
    print(
        f"{config.cache}: {counted(len(committed), 'shard')}, {counted(clips, 'clip')} read, "
        f"{nbytes / 1e6:.1f} MB in {seconds:.1f} s "
        f"({nbytes / 1e6 / seconds:.0f} MB/s), {counted(faults, 'fault')}"
    )
    if config.repair:
        for unit in faulty:
            storage.delete_file(storage.join(config.cache, "index", f"{unit_name(unit)}.parquet"))
    if repeated:
        raise JobIncompleteError(
            f"{config.cache}: {counted(faults, 'fault')}; salmonn cache prune with apply=true leaves clips that are "
            "planned more than once in the first of their shards"
        )
    if faults and config.repair:
        raise JobIncompleteError(
            f"{config.cache}: {counted(faults, 'fault')}; {counted(len(faulty), 'shard')} taken out of the index, "
            "which salmonn extract with the same keys makes anew, and salmonn submit extract with again=true"
        )
    if faults:
        raise JobIncompleteError(
            f"{config.cache}: {counted(faults, 'fault')}; with repair=true faulty shards go out of the index, and "
            "salmonn extract with the same keys makes them anew"
        )


def _all_units(cache: str, committed: Collection[int]) -> Iterator[ExtractUnit]:
    """Yield the planned units, then, without clips, the committed ones that are not planned."""
    unplanned = set(committed)
    for unit in read_units(cache):
        unplanned.discard(unit.unit)
        yield unit
    yield from (ExtractUnit(unit, ()) for unit in sorted(unplanned))


def _check_unit(config: CacheVerifyConfig, recipe: Recipe, unit: ExtractUnit, committed: Collection[int]) -> _Checked:
    if unit.unit not in committed:
        return _Checked(unit.unit, [f"units: shard {unit.unit_id} is planned and not there"], 0, 0)
    index = f"index/{unit.unit_id}.parquet"
    try:
        table = read_index(config.cache, unit.unit)
        rejects = read_rejects(config.cache, {unit.unit})["clip_id"].to_pylist()
    except (UserError, pa.ArrowException, OSError) as error:
        return _Checked(unit.unit, [f"{index}: {error}"], 0, 0)
    if {field.name: field.type for field in table.schema} != {
        field.name: field.type for field in index_schema(recipe)
    } or len(set(table.schema.names)) != len(table.schema.names):
        return _Checked(unit.unit, [f"{index}: its columns are not those of the recipe"], 0, 0)
    try:
        check_unit(table, unit.unit, recipe, place=index)
    except UserError as error:
        return _Checked(unit.unit, [str(error)], 0, 0)
    rows, about = table.to_pylist(), table.schema.metadata or {}
    faults = [f"{index}: {fault}" for fault in _plan_faults(unit, [row["clip_id"] for row in rows], rejects)]
    if about.get(b"recipe", b"").decode() != recipe.digest:
        faults.append(f"{index}: written with another recipe than recipe.json's")
    shard = f"shards/{unit.unit_id}.tar"
    uri = storage.join(config.cache, shard)
    if not storage.file_exists(uri):
        return _Checked(unit.unit, [*faults, f"{shard}: is not there"], 0, 0)
    expected = shard_nbytes(table.schema)
    if storage.file_nbytes(uri) != expected:
        faults.append(f"{shard}: has {storage.file_nbytes(uri)} bytes, its index says {expected}")
    chosen = [row for row in rows if config.takes(row["clip_id"])]
    try:
        with storage.open_file(uri) as file:
            found = [
                fault for row in chosen for member in member_names(recipe) for fault in _faults_of(file, row, member)
            ]
            whole = config.sample == 1.0 and not found
            if whole and _sha256(file).encode() != about.get(b"shard_sha256"):
                found = [f"{shard}: bytes between its arrays are damaged"]
    except OSError as error:
        found = [f"{shard}: {error}"]
    nbytes = sum(row[f"{member}_nbytes"] for row in chosen for member in member_names(recipe))
    return _Checked(unit.unit, [*faults, *found], len(chosen), nbytes)


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while block := file.read(READ_NBYTES):
        digest.update(block)
    return digest.hexdigest()


def _plan_faults(unit: ExtractUnit, encoded: Sequence[str], rejected: Sequence[str]) -> Iterator[str]:
    planned, decided = {clip.clip_id for clip in unit.clips}, Counter([*encoded, *rejected])
    for clip in sorted(planned - decided.keys()):
        yield f"clip {clip} is planned, but neither encoded nor rejected"
    for clip in sorted(decided.keys() - planned):
        yield f"clip {clip} is not in the plan of this shard"
    for clip, times in sorted(decided.items()):
        if times > 1:
            yield f"clip {clip} is named {times} times"


def _faults_of(file: BinaryIO, row: Mapping[str, Any], member: str) -> Iterator[str]:
    """Yield what is wrong with an array: its header in the tar, then its bytes."""
    offset = row[f"{member}_offset"]
    file.seek(max(0, offset - TAR_BLOCK))
    header, data = file.read(TAR_BLOCK), file.read(row[f"{member}_nbytes"])
    name = f"{row['clip_id']}.{member}.npy"
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        if (info.name, info.size) != (name, row[f"{member}_nbytes"]):
            yield f"shards/{row['shard']}: at {offset} lies {info.name}, {info.size} bytes, not {name}"
            return
        check_member(data, row, member)
    except tarfile.HeaderError:
        yield f"shards/{row['shard']}: at {offset} lies no member of a tar, not {name}"
    except UserError as error:
        yield str(error)
