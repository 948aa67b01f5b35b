"""`salmonn cache export`, `merge` and `trim`: clips from caches into another, as their shards store them.

The target is planned as an extraction would plan it, and each unit is then read from the sources instead of encoded. So
the target is a cache like any other: the same selection gives the same bytes, a second run continues where the first
stopped, and `salmonn extract` adds what is still missing. Ten million clips cost 1 GB
for the ids of the plan; arrays are held one clip per thread, and never decoded; `trim` leaves out their last rows.
"""

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from encoders.audio import AudioError
from pipelines import storage
from pipelines.cache.clip_index import ClipIndex
from pipelines.cache.index import ShardInfo, committed_units, read_rejects
from pipelines.cache.plan import ExtractUnit, extend_plan, read_units
from pipelines.cache.recipe import RECIPE, Recipe, read_recipe, write_recipe
from pipelines.cache.shard import RejectedClip, StoredClip, read_stored, stored_error, trimmed, write_shard
from pipelines.cache.tools.config import CacheExportConfig, CacheMergeConfig, CacheTrimConfig
from pipelines.errors import UserError
from pipelines.interface.progress import Progress
from pipelines.interface.words import counted
from pipelines.manifest.tables import Clip, read_clips, read_examples, require_named
from pipelines.storage.threads import run_threads

MEGABYTE = 1_000_000


def cache_export(config: CacheExportConfig) -> None:
    """Copy a selection of clips to another cache; rejected clips stay rejected there.

    Raises:
        FileNotFoundError: If there is no cache or manifest.
        UserError: If nothing is selected, a named clip is absent, or the target has another recipe.
    """
    if config.clips:
        cache = ClipIndex(config.cache)
        absent = [clip for clip, row in zip(config.clips, cache.positions(config.clips), strict=True) if row < 0]
        if absent:
            raise UserError(f"{config.cache}: holds no features of clip {absent[0]}")
        wanted = {bytes.fromhex(clip) for clip in config.clips}
    else:
        wanted = _manifest_clips(config)
    _copy([config.cache], config.out, wanted, config.shard_megabytes * MEGABYTE, config.threads)


def cache_merge(config: CacheMergeConfig) -> None:
    """Copy the clips of several caches to one, each once; one rejected here and encoded there counts as encoded.

    Raises:
        FileNotFoundError: If one of the folders holds no cache.
        UserError: If recipes differ, naming the first field.
    """
    if not config.caches:
        raise UserError("caches=[…] names no cache")
    _copy(config.caches, config.out, None, config.shard_megabytes * MEGABYTE, config.threads)


def cache_trim(config: CacheTrimConfig) -> None:
    """Copy all clips without the speech frames of the silence behind their sound: what `speech_frames=heard` extracts.

    Raises:
        FileNotFoundError: If there is no cache.
        UserError: If it has no such frames, or the target has another recipe.
    """
    recipe = read_recipe(config.cache)[0]
    if recipe.speech_frames == "heard":
        raise UserError(f"{config.cache}: is trimmed already (speech_frames=heard); cache export copies it")
    _copy([config.cache], config.out, None, config.shard_megabytes * MEGABYTE, config.threads, trim=True)


def _manifest_clips(config: CacheExportConfig) -> set[bytes]:
    if not (config.splits or config.tasks):
        return {bytes.fromhex(clip.clip_id) for clip in read_clips(config.manifest)}
    wanted = {
        bytes.fromhex(example.clip_id)
        for example in read_examples(config.manifest)
        if (not config.splits or example.split in config.splits) and (not config.tasks or example.task in config.tasks)
    }
    if not wanted:
        raise UserError(f"{config.manifest}: no example has splits={config.splits} and tasks={config.tasks}")
    require_named(config.manifest, config.splits, config.tasks)
    return wanted


@dataclass(frozen=True)
class _Source:
    cache: ClipIndex
    rejects: dict[str, AudioError]


def _open_source(uri: str) -> _Source:
    rows = read_rejects(uri, committed_units(uri)).to_pylist()
    return _Source(ClipIndex(uri), {row["clip_id"]: stored_error(row) for row in rows})


def _copy(
    uris: Sequence[str],
    out: str,
    wanted: Collection[bytes] | None,
    shard_nbytes: int,
    threads: int,
    *,
    trim: bool = False,
) -> None:
    recipe = read_recipe(uris[0])[0]
    for other in uris[1:]:
        recipe.require_same(read_recipe(other)[0], here=uris[0], there=other)
    recipe = replace(recipe, speech_frames="heard") if trim else recipe
    if storage.file_exists(storage.join(out, RECIPE)):
        recipe.require_same(read_recipe(out)[0], here=f"{uris[0]}, trimmed," if trim else uris[0], there=out)
    sources = [_open_source(uri) for uri in uris]
    if wanted is not None and next(_decided_clips(uris[0], wanted), None) is None:
        raise UserError(f"{uris[0]}: holds none of the {len(wanted)} selected clips")
    with storage.held(out):
        _write_copy(sources, out, wanted, recipe, shard_nbytes=shard_nbytes, threads=threads)


def _write_copy(
    sources: Sequence[_Source],
    out: str,
    wanted: Collection[bytes] | None,
    recipe: Recipe,
    *,
    shard_nbytes: int,
    threads: int,
) -> None:
    start = time.perf_counter()
    uris = [source.cache.uri for source in sources]
    if not storage.file_exists(storage.join(out, RECIPE)):
        about = storage.read_json(storage.join(uris[0], RECIPE))
        write_recipe(out, recipe, encoders=about["encoders"], recorded=about["recorded"])
    for uri in uris:
        extend_plan(out, _decided_clips(uri, wanted), recipe=recipe, shard_nbytes=shard_nbytes)
    done = committed_units(out)
    planned = [pa.array([clip.clip_id for clip in unit.clips], pa.string()) for unit in read_units(out, skip=done)]
    ids = pa.chunked_array(planned, pa.string()).combine_chunks()
    positions_SN = np.stack([source.cache.positions(ids) for source in sources])

    def copied(located: tuple[ExtractUnit, np.ndarray[Any, np.dtype[np.int64]]]) -> ShardInfo:
        unit, positions = located
        clips = _stored_clips(sources, unit.clips, positions)
        if recipe.speech_frames != sources[0].cache.recipe.speech_frames:
            clips = (trimmed(clip) if isinstance(clip, StoredClip) else clip for clip in clips)
        return write_shard(out, unit.unit, recipe, clips)

    units = _complete_units(sources, read_units(out, skip=done), positions_SN)
    infos = []
    with Progress().phase("copy", unit="shards", total=len(planned)) as phase:
        for info in run_threads(copied, units, threads=threads):
            infos.append(info)
            phase.advance()
    nbytes, seconds = sum(info.nbytes for info in infos), time.perf_counter() - start
    clips, rejects = sum(info.clips for info in infos), sum(info.rejects for info in infos)
    print(
        f"{out}: {counted(len(infos), 'shard')} written, {len(done)} were there; "
        f"{counted(clips, 'clip')}, {counted(rejects, 'reject')}, "
        f"{nbytes / 1e6:.1f} MB in {seconds:.1f} s ({nbytes / 1e6 / seconds:.0f} MB/s)"
    )
    if len(infos) < len(planned):
        print(f"{out}: {len(planned) - len(infos)} of the shards hold clips of no source; salmonn extract encodes them")


def _decided_clips(cache: str, wanted: Collection[bytes] | None) -> Iterator[Clip]:
    """Yield the wanted clips of the committed units, in their order."""
    units = committed_units(cache)
    for unit in read_units(cache):
        if unit.unit in units:
            yield from (clip for clip in unit.clips if wanted is None or bytes.fromhex(clip.clip_id) in wanted)


def _complete_units(
    sources: Sequence[_Source], units: Iterable[ExtractUnit], positions_SN: np.ndarray[Any, np.dtype[np.int64]]
) -> Iterator[tuple[ExtractUnit, np.ndarray[Any, np.dtype[np.int64]]]]:
    """Yield the units whose every clip is in a source or was rejected there, with their clips' positions."""
    first = 0
    for unit in units:
        positions_SK = positions_SN[:, first : first + len(unit.clips)]
        first += len(unit.clips)
        absent = (clip for clip, row in zip(unit.clips, positions_SK.max(axis=0), strict=True) if row < 0)
        if all(any(clip.clip_id in source.rejects for source in sources) for clip in absent):
            yield unit, positions_SK


def _stored_clips(
    sources: Sequence[_Source], clips: Sequence[Clip], positions_SK: np.ndarray[Any, np.dtype[np.int64]]
) -> Iterator[StoredClip | RejectedClip]:
    """Yield a unit's clips in order; each shard is opened once in a row."""
    places: list[tuple[Clip, int, Any]] = []
    for clip, positions in zip(clips, positions_SK.T, strict=True):
        number = int(np.argmax(positions >= 0))
        held = positions[number] >= 0
        row = sources[number].cache.row(int(positions[number])) if held else None
        places.append((clip, number, row))
    for (number, shard), group in groupby(places, key=lambda place: (place[1], place[2] and place[2]["shard"])):
        if shard is None:
            for clip, _, _ in group:
                yield RejectedClip(clip, next(s.rejects[clip.clip_id] for s in sources if clip.clip_id in s.rejects))
            continue
        cache = sources[number].cache
        with storage.open_file(storage.join(cache.uri, "shards", shard)) as file:
            for clip, _, row in group:
                yield read_stored(file, row, clip, cache.recipe)
