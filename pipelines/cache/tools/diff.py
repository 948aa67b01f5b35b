"""`salmonn cache diff`: in what two caches differ, by their recipes and indices; of a sample, by how much.

A clip takes 16 bytes of its id, 4 of its shard and 4 of each array's checksum; two caches of ten million clips each
take 1.5 GB and 23 s (measured on 2026-11-28). Letters: N clips, M arrays of a clip.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import storage
from pipelines.cache.bounds import read_checked
from pipelines.cache.index import committed_units, member_names, read_members
from pipelines.cache.layout import unit_name
from pipelines.cache.recipe import Recipe, read_recipe, recipe_differences
from pipelines.cache.tools.config import CacheDiffConfig
from pipelines.errors import JobIncompleteError, UserError
from pipelines.interface.words import counted
from pipelines.manifest.id_set import ID_NBYTES, to_ids
from pipelines.storage.arrays import Ids, Integers

FIRST_CLIPS = 3


@dataclass(frozen=True)
class _Clips:
    """A cache's clips in the order of their ids."""

    ids: Ids
    units: np.ndarray[Any, np.dtype[np.int32]]
    checksums: np.ndarray[Any, np.dtype[np.uint32]]
    """[N, M]."""


def cache_diff(config: CacheDiffConfig) -> None:
    """Print in what two caches differ; without `sample` no shard is read.

    Raises:
        MissingError: If a folder is no cache.
        UserError: If an index is damaged.
        JobIncompleteError: If the caches differ.
    """
    recipes = read_recipe(config.a)[0], read_recipe(config.b)[0]
    fields = recipe_differences(*recipes)
    for field, a, b in fields:
        print(f"recipe: {field}\n  a  {a}\n  b  {b}")
    shared = sorted(set(member_names(recipes[0])) & set(member_names(recipes[1])))
    ours, theirs = _read_clips(config.a, shared), _read_clips(config.b, shared)
    in_b, in_a = _places(ours.ids, theirs.ids), _places(theirs.ids, ours.ids)
    only_a, only_b, both_N = np.flatnonzero(in_b < 0), np.flatnonzero(in_a < 0), np.flatnonzero(in_b >= 0)
    differ_N = both_N[(ours.checksums[both_N] != theirs.checksums[in_b[both_N]]).any(axis=1)]
    print(f"in a alone: {_first(ours.ids[only_a])}")
    print(f"in b alone: {_first(theirs.ids[only_b])}")
    print(f"in both: {counted(len(both_N), 'clip')}, of other bytes {_first(ours.ids[differ_N])}")
    if config.sample:
        _measure(config, recipes, ours.ids[both_N], ours.units[both_N], theirs.units[in_b[both_N]])
    differing = len(only_a) + len(only_b) + len(differ_N)
    if fields or differing:
        raise JobIncompleteError(
            f"{config.a} and {config.b} differ: {counted(len(fields), 'field')} of their recipes and "
            f"{counted(differing, 'clip')}"
        )


def _read_clips(cache: str, members: Sequence[str]) -> _Clips:
    columns = [f"{member}_crc32" for member in members]
    schema = pa.schema([("clip_id", pa.string()), *((name, pa.int64()) for name in columns)])
    ids, units, checksums = [to_ids(pa.array([], pa.string()))], [], [np.zeros((0, len(columns)), np.uint32)]
    for unit in sorted(committed_units(cache)):
        uri = storage.join(cache, "index", f"{unit_name(unit)}.parquet")
        table = storage.read_parquet(uri, schema, only_schema=True)
        try:
            ids.append(to_ids(table["clip_id"].combine_chunks()))
        except UserError as error:
            raise UserError(f"{uri}: {error}") from None
        units.append(np.full(len(table), unit, np.int32))
        numbers = [pc.fill_null(table[name], -1).to_numpy().astype(np.uint32) for name in columns]
        checksums.append(np.stack(numbers, axis=1) if numbers else np.zeros((len(table), 0), np.uint32))
    ids_N, first_N = np.unique(np.concatenate(ids), return_index=True)  # of clips planned twice, the first
    return _Clips(ids_N, np.concatenate([np.zeros(0, np.int32), *units])[first_N], np.concatenate(checksums)[first_N])


def _places(ids_N: Ids, others: Ids) -> Integers:
    """Return where each id [N] stands among the others, which are in order; -1 where it does not."""
    if not len(others):
        return np.full(len(ids_N), -1)
    places_N = np.minimum(np.searchsorted(others, ids_N), len(others) - 1)
    return np.where(others[places_N] == ids_N, places_N, -1)


def _first(ids_N: Ids) -> str:
    names = [_name(one) for one in ids_N[:FIRST_CLIPS]]
    more = ", …" if len(ids_N) > FIRST_CLIPS else ""
    return counted(len(ids_N), "clip") + (f" ({', '.join(names)}{more})" if names else "")


def _name(clip: bytes) -> str:
    return bytes(clip).ljust(ID_NBYTES, b"\0").hex()


def _measure(
    config: CacheDiffConfig,
    recipes: tuple[Recipe, Recipe],
    ids_N: Ids,
    ours_N: np.ndarray[Any, np.dtype[np.int32]],
    theirs_N: np.ndarray[Any, np.dtype[np.int32]],
) -> None:
    """Print how far the sampled clips are apart, a's as what is wanted."""
    from pipelines.cache.tools.nearness import Nearness, stored_frames  # loads PyTorch, which the rest does without

    nearness = Nearness()
    for clip, *units in zip(ids_N, ours_N.tolist(), theirs_N.tolist(), strict=True):
        if not config.takes(_name(clip)):
            continue
        streams = []
        for cache, unit, recipe in zip((config.a, config.b), units, recipes, strict=True):
            members, row = _read_clip(cache, unit, _name(clip), recipe)
            streams.append(stored_frames(members, row, recipe))
        for fault in nearness.add(streams[0], streams[1], tolerance_db=-np.inf):
            print(f"clip {_name(clip)}: {fault}")
    for line in nearness.lines():
        print(line)


def _read_clip(cache: str, unit: int, clip: str, recipe: Recipe) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return a clip's .npy files and its row of the index, both checked."""
    table = read_checked(cache, unit, recipe)
    (row,) = table.filter(pc.equal(table["clip_id"], clip)).slice(0, 1).to_pylist()
    with storage.open_file(storage.join(cache, "shards", row["shard"])) as file:
        return read_members(file, row, recipe), row
