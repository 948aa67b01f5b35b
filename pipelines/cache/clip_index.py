"""A cache's whole index in memory: clips by their position, without PyTorch and without their features."""

import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encoders.features import SCALE_NBYTES, STORED_TYPES, Heard
from pipelines import storage
from pipelines.cache.bounds import check_index
from pipelines.cache.index import committed_units, index_schema, member_names, shard_nbytes
from pipelines.cache.read_config import ReadConfig
from pipelines.cache.recipe import Recipe, read_recipe
from pipelines.errors import UserError
from pipelines.storage.arrays import Booleans, Integers
from pipelines.storage.ranges import GAP_BYTES
from pipelines.storage.threads import run_threads

READ_THREADS = 8
Positions = Sequence[int] | Integers
Frames = int | Integers | None
"""How many frames of a stream are wanted: as many of all clips, of each its number [N], or all."""


@dataclass(frozen=True)
class MemberPlaces:
    """Where one member of some clips is in their shards, in bytes, int64 [N] each."""

    start: Integers
    """Of the .npy file."""
    values: Integers
    """Of its first value, after the header."""
    heard_end: Integers
    """Of the last value that is heard."""
    end: Integers
    """Of the .npy file."""


class ClipIndex:
    """The clips of a cache by their position: which there are, where their arrays are, how long they are.

    A million clips take 1.2 GB of memory and 21 processor seconds to open (measured on 2026-11-27).

    Raises:
        MissingError: If there is no cache.
        UserError: If no shard is complete.
    """

    def __init__(self, uri: str, read: ReadConfig | None = None) -> None:
        """Read the index; by default every clip's checksums are compared where it is read."""
        self.uri = uri
        self.recipe, self.encoders = read_recipe(uri)
        if not committed_units(uri):
            raise UserError(f"{uri}: holds no complete shard yet")
        schema = index_schema(self.recipe)
        self.index = _read_index(storage.join(uri, "index"), schema, self.recipe)
        numbers = [name for name in schema.names if name.endswith(("_offset", "_nbytes", "_crc32", "_frames"))]
        self._seconds = self.index["seconds"].to_numpy()
        self._columns = {name: self.index[name].to_numpy() for name in numbers}
        self._read = read or ReadConfig(verify_fraction=1.0)

    def positions(self, clip_ids: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return each clip's row in the index, -1 where the cache does not hold it."""
        found = pc.index_in(pa.array(clip_ids, pa.string()), value_set=self.index["clip_id"])
        return np.asarray(found.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)

    def shard_numbers(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return a number for each row's shard, counted in the order of the index."""
        return np.asarray(self.index["shard"].combine_chunks().dictionary_encode().indices, dtype=np.int64)

    def heard_of(self, positions: Positions, heard: Heard) -> Integers:
        """Return how many frames of each stream are heard, at most, of the clips [N]."""
        return heard.frames_of(self._seconds[positions])

    def frames_of(self, stream: str, positions: Positions, *, frames: Frames = None) -> Integers:
        """Return how many frames of a stream the clips [N] have, `frames` at most."""
        stored_N: Integers = self._columns[f"{stream}_frames"][positions].astype(np.int64)
        return stored_N if frames is None else np.minimum(stored_N, frames)

    def read_nbytes(self, positions: Positions, *, frames: Frames = None) -> Integers:
        """Return how many bytes reading the first `frames` frames takes from storage for each of the clips [N]."""
        whole_N = np.array([self.is_verified(clip) for clip in self.index["clip_id"].take(positions).to_pylist()])
        ranges = [_ranges(self.places(member, positions, frames), whole_N) for member in member_names(self.recipe)]
        nbytes_N = sum((end_N - start_N for start_N, end_N in ranges), np.zeros(len(positions), np.int64))
        if not storage.is_local(self.uri):  # the bytes between near members come along
            for (_, end_N), (start_N, _) in itertools.pairwise(ranges):
                nbytes_N += np.where(start_N - end_N <= GAP_BYTES, start_N - end_N, 0)
        return nbytes_N

    def places(self, member: str, positions: Positions, frames: Frames) -> MemberPlaces:
        """Return where a member of the clips [N] is, of which the first `frames` frames are heard."""
        start_N, nbytes_N = (self._columns[f"{member}_{name}"][positions] for name in ("offset", "nbytes"))
        stream = member.removesuffix("_scale")
        width, is_scale = self.recipe.streams[stream].width, member != stream
        row_nbytes = width * (SCALE_NBYTES if is_scale else STORED_TYPES[self.recipe.codec].value_nbytes)
        ones_N = np.ones_like(start_N)
        values_N = start_N + nbytes_N - row_nbytes * (ones_N if is_scale else self.frames_of(stream, positions))
        heard_N = row_nbytes * (ones_N if is_scale else self.frames_of(stream, positions, frames=frames))
        return MemberPlaces(start_N, values_N, values_N + heard_N, start_N + nbytes_N)

    def is_verified(self, clip_id: str) -> bool:
        """Tell whether a clip is among those whose checksums are compared."""
        return zlib.crc32(clip_id.encode()) < self._read.verify_fraction * 2**32

    def name_clip(self, position: int) -> str:
        """Return the shard and the id of a clip, for a message."""
        clip_id, shard = (self.index[name][position].as_py() for name in ("clip_id", "shard"))
        return f"{storage.join(self.uri, 'shards', shard)}: clip {clip_id}"


def _read_index(folder: str, schema: pa.Schema, recipe: Recipe) -> pa.Table:
    """Return the index files of a cache one after the other; a column that an older file lacks is null there.

    pyarrow's `read_table` does this too, and loads 40 MB of its datasets' code for it.
    """

    def read(name: str) -> tuple[pa.Table, int]:
        uri = storage.join(folder, name)
        table = storage.read_parquet(uri, schema, optional=schema.names)
        columns = [
            table[field.name] if field.name in table.schema.names else pa.nulls(len(table), field.type)
            for field in schema
        ]
        return pa.table(columns, schema=schema), shard_nbytes(table.schema)

    names = sorted(storage.list_names(folder, ".parquet"))
    found = list(run_threads(read, names, threads=READ_THREADS))
    index = pa.concat_tables([table for table, _ in found]).combine_chunks()
    unit_N = np.repeat(np.arange(len(names)), [len(table) for table, _ in found])
    check_index(
        index,
        recipe,
        shards=pa.array([f"{name.removesuffix('.parquet')}.tar" for name in names]).take(pa.array(unit_N)),
        ends_N=np.array([nbytes for _, nbytes in found], np.int64)[unit_N],
        place=lambda row: storage.join(folder, names[unit_N[row]]),
    )
    return index


def _ranges(places: MemberPlaces, whole_N: Booleans) -> tuple[Integers, Integers]:
    """Return where reading begins and ends: the whole member of the clips that are verified, else what is heard."""
    return np.where(whole_N, places.start, places.values), np.where(whole_N, places.end, places.heard_end)
