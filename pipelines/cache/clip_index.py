"""A cache's whole index in memory: clips by their position, without PyTorch and without their features."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from encoders.features import SCALE_NBYTES, STORED_TYPES, Heard
from pipelines import storage
from pipelines.cache.bounds import NPY_HEADER_NBYTES
from pipelines.cache.clip_table import DIGITS, IndexFiles, clip_table, find_rows, read_index_rows
from pipelines.cache.index import member_names
from pipelines.cache.layout import unit_name
from pipelines.cache.read_config import ReadConfig
from pipelines.cache.recipe import read_recipe
from pipelines.errors import UserError
from pipelines.storage.arrays import Booleans, Floats, Integers, numbers
from pipelines.storage.ranges import GAP_BYTES

UNITS_KEPT = 64
"""Of which all rows are in memory as they were read."""
IDS_AT_ONCE = 131_072
"""Looked up at a time."""
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

    The processes of a machine share the memory of a large cache's index: see `pipelines.storage.snapshots`.

    Raises:
        MissingError: If there is no cache.
        UserError: If no shard is complete.
    """

    def __init__(self, uri: str, read: ReadConfig | None = None) -> None:
        """Read the index; by default every clip's checksums are compared where it is read."""
        self.uri = uri
        self.recipe, self.encoders = read_recipe(uri)
        self._files = IndexFiles.of(uri)
        if not self._files.files:
            raise UserError(f"{uri}: holds no complete shard yet")
        self.table = clip_table(self._files, self.recipe)
        """Columns as `clip_table` says."""
        self.seconds: Floats = numbers(self.table["seconds"])
        """[seconds] Length of each clip."""
        self._columns = {name: numbers(self.table[name]) for name in self.table.column_names}
        self._unit_rows = lru_cache(maxsize=UNITS_KEPT)(self._read_unit)
        self._read = read or ReadConfig(verify_fraction=1.0)

    @property
    def num_clips(self) -> int:
        return int(self.table.num_rows)

    @property
    def key(self) -> str:
        """Names the index files that were read, as they were."""
        return self._files.key(self.recipe)

    def clip_id(self, position: int) -> str:
        high, low = (int(self._columns[name][position]) for name in ("id_high", "id_low"))
        return f"{high:016x}{low:016x}"

    def shard(self, position: int) -> str:
        """Return the name of a clip's shard."""
        return f"{unit_name(int(self._columns['unit'][position]))}.tar"

    def rows(self) -> pa.Table:
        """Read the index files anew, each clip with all that stands there: 200 bytes a clip."""
        return read_index_rows(self.uri, self.recipe, [name for name, _, _ in self._files.files])[0]

    def row(self, position: int) -> dict[str, Any]:
        """Return all that stands in the index about a clip."""
        unit = int(self._columns["unit"][position])
        first = int(np.searchsorted(self._columns["unit"], unit))
        row: dict[str, Any] = self._unit_rows(unit).slice(position - first, 1).to_pylist()[0]
        return row

    def _read_unit(self, unit: int) -> pa.Table:
        return read_index_rows(self.uri, self.recipe, [f"{unit_name(unit)}.parquet"])[0]

    def positions(self, clip_ids: Sequence[str] | pa.Array | pa.ChunkedArray) -> Integers:
        """Return each clip's row in the index, -1 where the cache does not hold it."""
        ids = clip_ids if isinstance(clip_ids, pa.Array | pa.ChunkedArray) else pa.array(clip_ids, pa.string())
        table = pa.table({"clip_id": ids})
        found = [find_rows(self.table, batch["clip_id"]) for batch in table.to_batches(max_chunksize=IDS_AT_ONCE)]
        return np.concatenate([np.zeros(0, np.int64), *found])

    def positions_from(self, first_digits: str) -> Integers:
        """Return the rows of the clips whose ids begin so."""
        half = DIGITS // 2
        if not (set(first_digits) <= set("0123456789abcdef") and len(first_digits) <= DIGITS):
            return np.zeros(0, np.int64)
        low, high = (int(first_digits[:half].ljust(half, digit), 16) for digit in "0f")
        start, end = np.searchsorted(self._columns["sorted_high"], np.array([low, high], np.uint64), side="left")
        end += int(np.sum(self._columns["sorted_high"][end:] == high))
        rows: Integers = self._columns["by_id"][start:end].astype(np.int64)
        return rows if len(first_digits) <= half else rows[[self.clip_id(row).startswith(first_digits) for row in rows]]

    def shard_numbers(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return a number for each row's shard, counted in the order of the index."""
        unit_N = self._columns["unit"]
        return np.cumsum(np.r_[0, unit_N[1:] != unit_N[:-1]])

    def heard_of(self, positions: Positions, heard: Heard) -> Integers:
        """Return how many frames of each stream are heard, at most, of the clips [N]."""
        return heard.frames_of(self.seconds[positions])

    def frames_of(self, stream: str, positions: Positions, *, frames: Frames = None) -> Integers:
        """Return how many frames of a stream the clips [N] have, `frames` at most."""
        stored_N: Integers = self._columns[f"{stream}_frames"][positions].astype(np.int64)
        return stored_N if frames is None else np.minimum(stored_N, frames)

    def read_nbytes(self, positions: Positions, *, frames: Frames = None) -> Integers:
        """Return how many bytes reading the first `frames` frames takes from storage for each of the clips [N]."""
        whole_N = self.are_verified(positions)
        ranges = [_ranges(self.places(member, positions, frames), whole_N) for member in member_names(self.recipe)]
        nbytes_N = sum((end_N - start_N for start_N, end_N in ranges), np.zeros(len(positions), np.int64))
        if not storage.is_local(self.uri):  # the bytes between near members come along
            for (_, end_N), (start_N, _) in itertools.pairwise(ranges):
                nbytes_N += np.where(start_N - end_N <= GAP_BYTES, start_N - end_N, 0)
        return nbytes_N

    def places(self, member: str, positions: Positions, frames: Frames) -> MemberPlaces:
        """Return where a member of the clips [N] is, of which the first `frames` frames are heard."""
        start_N = self._columns[f"{member}_offset"][positions]
        stream = member.removesuffix("_scale")
        width, is_scale = self.recipe.streams[stream].width, member != stream
        row_nbytes = width * (SCALE_NBYTES if is_scale else STORED_TYPES[self.recipe.codec].value_nbytes)
        ones_N = np.ones_like(start_N)
        values_N = start_N + NPY_HEADER_NBYTES
        stored_N = row_nbytes * (ones_N if is_scale else self.frames_of(stream, positions))
        heard_N = row_nbytes * (ones_N if is_scale else self.frames_of(stream, positions, frames=frames))
        return MemberPlaces(start_N, values_N, values_N + heard_N, values_N + stored_N)

    def are_verified(self, positions: Positions) -> Booleans:
        """Tell which clips' checksums are compared: the same ones always, as ids are digests."""
        are_N: Booleans = self._columns["id_high"][positions] / 2.0**64 < self._read.verify_fraction
        return are_N | (self._read.verify_fraction == 1)  # the highest ids round up to 1

    def name_clip(self, position: int) -> str:
        """Return the shard and the id of a clip, for a message."""
        return f"{storage.join(self.uri, 'shards', self.shard(position))}: clip {self.clip_id(position)}"


def _ranges(places: MemberPlaces, whole_N: Booleans) -> tuple[Integers, Integers]:
    """Return where reading begins and ends: the whole member of the clips that are verified, else what is heard."""
    return np.where(whole_N, places.start, places.values), np.where(whole_N, places.end, places.heard_end)
