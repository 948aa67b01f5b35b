"""`salmonn cache prune`: a feature cache without the clips that no manifest names any more, and with none twice.

A shard keeps its number; its plan loses the clips that go, so that an extraction with an older manifest plans and
encodes them anew. Units are numbered without gaps, so a shard that loses all its clips stays as an empty one, unless
none comes after it. Shards come first and the plan last: killed at any line, the same command finishes the work.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.cache.index import committed_units, member_names, read_index, read_rejects
from pipelines.cache.layout import FOLDERS, UNITS, find_orphans, unit_files
from pipelines.cache.plan import PLAN_SCHEMA, ExtractUnit, read_units, repeated_clips
from pipelines.cache.recipe import Recipe, read_recipe
from pipelines.cache.shard import RejectedClip, StoredClip, read_stored, stored_error, write_shard
from pipelines.cache.tools.config import CachePruneConfig
from pipelines.errors import UserError
from pipelines.interface.words import counted
from pipelines.manifest.tables import read_clips
from pipelines.storage.tables import ROWS_PER_GROUP


class _Wanted:
    """Which clips stay where: those that a manifest names, or all; a repeated one in the first of its units."""

    def __init__(self, cache: str, manifests: Sequence[str]) -> None:
        self._named = {bytes.fromhex(clip.clip_id) for manifest in manifests for clip in read_clips(manifest)}
        self._are_all = not manifests
        self.repeated = {clip: min(units) for clip, units in repeated_clips(cache).items()}

    def has(self, unit: int, clip_id: str) -> bool:
        is_named = self._are_all or bytes.fromhex(clip_id) in self._named
        return is_named and self.repeated.get(clip_id, unit) == unit


@dataclass
class _Pruning:
    """What is to be done: units that lose clips, the last that keeps any, and how much goes."""

    units: set[int]
    last: int = -1
    clips: int = 0
    nbytes: int = 0


def cache_prune(config: CachePruneConfig) -> None:
    """Drop the clips that none of the manifests names, and what belongs to no shard; without `apply` only say which.

    No job may use the cache meanwhile: one that writes is known by its hold, and on a local filesystem by unfinished
    files, one that only reads is not. Ten million wanted clips cost 1 GB for their ids.

    Raises:
        FileNotFoundError: If there is no cache or manifest.
        UserError: If a job seems to write to the cache, or no clip would remain.
    """
    read_recipe(config.cache)
    with storage.held(config.cache) if config.apply else nullcontext():
        _prune(config)


def _prune(config: CachePruneConfig) -> None:
    recipe, _ = read_recipe(config.cache)
    wanted = _Wanted(config.cache, config.manifest)
    committed = committed_units(config.cache)
    pruning = _plan_pruning(config, recipe, wanted, committed)
    orphans = find_orphans(config.cache, committed)
    verb = "removed" if config.apply else "would be removed"
    if config.apply:
        _require_idle(config)
        _prune_shards(config.cache, recipe, wanted, committed, pruning)
        _prune_plan(config.cache, wanted, pruning.units)
        for orphan in orphans:
            uri = storage.join(config.cache, orphan)
            if storage.file_exists(uri):
                storage.delete_file(uri)
    for orphan in orphans:
        print(f"{orphan}: {verb}")
    print(
        f"{config.cache}: {counted(pruning.clips, 'clip')} of {counted(len(pruning.units), 'shard')} "
        f"({pruning.nbytes / 1e6:.1f} MB) and "
        f"{len(orphans)} stray files {verb}" + ("" if config.apply else "; apply=true does it")
    )


def _plan_pruning(config: CachePruneConfig, recipe: Recipe, wanted: _Wanted, committed: Collection[int]) -> _Pruning:
    pruning = _Pruning(units=set())
    for unit in read_units(config.cache):
        dropped = {clip.clip_id for clip in unit.clips if not wanted.has(unit.unit, clip.clip_id)}
        is_waste = len(dropped) >= config.min_waste * len(unit.clips) or not wanted.repeated.keys().isdisjoint(dropped)
        if not dropped or not is_waste:
            pruning.last = unit.unit
            continue
        pruning.units.add(unit.unit)
        pruning.clips += len(dropped)
        if len(dropped) < len(unit.clips):
            pruning.last = unit.unit
        if unit.unit in committed:
            rows = read_index(config.cache, unit.unit).to_pylist()
            unwanted = [row for row in rows if row["clip_id"] in dropped]
            pruning.nbytes += sum(row[f"{member}_nbytes"] for row in unwanted for member in member_names(recipe))
    if pruning.last < 0:
        raise UserError(f"{config.cache}: none of its clips is in {', '.join(config.manifest)}; nothing would remain")
    return pruning


def _require_idle(config: CachePruneConfig) -> None:
    for folder in FOLDERS:
        for name, seconds in storage.list_unfinished(storage.join(config.cache, folder)).items():
            if seconds < 60 * config.idle_minutes:
                raise UserError(
                    f"{config.cache}: {folder}/{name} was written to {seconds:.0f} s ago, so a job seems to be at work "
                    f"(idle_minutes={config.idle_minutes:g})"
                )


def _prune_shards(cache: str, recipe: Recipe, wanted: _Wanted, committed: Collection[int], pruning: _Pruning) -> None:
    for unit in read_units(cache):
        if unit.unit not in pruning.units:
            continue
        if unit.unit > pruning.last:
            for file in (
                f"index/{unit.unit_id}.parquet",
                f"shards/{unit.unit_id}.tar",
                f"rejects/{unit.unit_id}.parquet",
            ):
                if storage.file_exists(storage.join(cache, file)):
                    storage.delete_file(storage.join(cache, file))
        elif unit.unit in committed:
            write_shard(cache, unit.unit, recipe, _kept(cache, recipe, unit, wanted), replace=True)
        elif not any(wanted.has(unit.unit, clip.clip_id) for clip in unit.clips):
            write_shard(cache, unit.unit, recipe, (), replace=True)


def _kept(cache: str, recipe: Recipe, unit: ExtractUnit, wanted: _Wanted) -> Iterator[StoredClip | RejectedClip]:
    """Yield a committed unit's wanted clips in their order."""
    rows = {row["clip_id"]: row for row in read_index(cache, unit.unit).to_pylist()}
    rejects = {row["clip_id"]: stored_error(row) for row in read_rejects(cache, {unit.unit}).to_pylist()}
    with storage.open_file(storage.join(cache, "shards", f"{unit.unit_id}.tar")) as file:
        for clip in unit.clips:
            if not wanted.has(unit.unit, clip.clip_id):
                continue
            if clip.clip_id in rows:
                yield read_stored(file, rows[clip.clip_id], clip, recipe)
            elif clip.clip_id in rejects:
                yield RejectedClip(clip, rejects[clip.clip_id])
            else:
                raise UserError(f"{cache}: clip {clip.clip_id} is planned, but neither encoded nor rejected")


def _prune_plan(cache: str, wanted: _Wanted, units: Collection[int]) -> None:
    """Write the plan's files anew without the unwanted clips of some units, the last first; one without rows goes."""
    for name in reversed(unit_files(cache, UNITS).values()):
        uri = storage.join(cache, UNITS, name)
        with storage.open_parquet(uri) as file:
            total = file.metadata.num_rows
            kept = sum(batch.num_rows for batch in _planned(file, wanted, units))
        if not kept:
            storage.delete_file(uri)
        elif kept < total:
            with (
                storage.open_parquet(uri) as file,
                storage.staged_file(uri) as path,
                pq.ParquetWriter(path, PLAN_SCHEMA, **storage.PAGE_CHECKSUMS) as writer,
            ):
                for batch in _planned(file, wanted, units):
                    writer.write_batch(batch)


def _planned(file: pq.ParquetFile, wanted: _Wanted, units: Collection[int]) -> Iterator[pa.RecordBatch]:
    for batch in storage.iter_batches(file, ROWS_PER_GROUP):
        pairs = zip(batch["unit"].to_pylist(), batch["clip_id"].to_pylist(), strict=True)
        yield batch.filter(pa.array([unit not in units or wanted.has(unit, clip) for unit, clip in pairs]))
