"""The feature cache opened for reading: clips by their position in the index, in ranged reads by several threads."""

import itertools
import math
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from encoders.codecs import dequantise
from pipelines import storage
from pipelines.cache.index import committed_units, index_schema, member_names
from pipelines.cache.read_config import ReadConfig
from pipelines.cache.recipe import read_recipe
from pipelines.errors import MissingError, UserError
from pipelines.storage.ahead import DaemonPool
from pipelines.storage.arrays import Booleans, Integers
from pipelines.storage.memory import BatchMemory
from pipelines.storage.ranges import GAP_BYTES, Extent, OpenFiles

OPEN_SHARDS = 256
OPEN_OBJECTS = 65_536
"""An object that is open is its length; asking for that is a request."""
STORED_DTYPES = {"float16": torch.float16, "int8": torch.int8}


@dataclass(frozen=True)
class StoredFrames:
    """A stream's first frames of some clips, as they are stored. B clips, T frames, C channels."""

    frames: Tensor
    """[B, T, C] float16 or int8, zeros after a clip's end; T is the longest clip's."""
    scale: Tensor | None
    """[B, C] float32, by which int8 is multiplied; None for float16."""
    lengths: Tensor
    """[B] int64, frames of each clip."""


class FeatureCache:
    """A cache opened for reading: clips by their position in the index, in ranged reads by several threads.

    The index is held in memory: about 230 bytes per clip, 2 GB for ten million.

    Raises:
        MissingError: If there is no cache.
        UserError: If no shard is complete.
    """

    def __init__(self, uri: str, read: ReadConfig | None = None, *, whole_shards: int = 0) -> None:
        """Open the cache; by default the checksums of all clips that are read are compared.

        With `whole_shards` remote shards are fetched from end to end, and so many kept as temporary files of this
        machine, instead of ranges of them.
        """
        self.uri = uri
        self.recipe, self.encoders = read_recipe(uri)
        if not committed_units(uri):
            raise UserError(f"{uri}: holds no complete shard yet")
        filesystem, path = storage.resolve(storage.join(uri, "index"))
        schema = index_schema(self.recipe)
        self.index = pq.read_table(path, schema=schema, filesystem=filesystem).combine_chunks()
        numbers = [name for name in schema.names if name.endswith(("_offset", "_nbytes", "_crc32", "_frames"))]
        self._columns = {name: self.index[name].to_numpy() for name in numbers}
        self._read = read or ReadConfig(verify_fraction=1.0)
        self._pool = DaemonPool(self._read.threads)
        self._memory = BatchMemory()
        self._shards = (
            OpenFiles(whole_shards, storage.open_copy)
            if whole_shards
            else OpenFiles(OPEN_SHARDS if storage.is_local(uri) else OPEN_OBJECTS)
        )

    def positions(self, clip_ids: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return each clip's row in the index, -1 where the cache does not hold it."""
        found = pc.index_in(pa.array(clip_ids, pa.string()), value_set=self.index["clip_id"])
        return np.asarray(found.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)

    def shard_numbers(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return a number for each row's shard, counted in the order of the index."""
        return np.asarray(self.index["shard"].combine_chunks().dictionary_encode().indices, dtype=np.int64)

    def read(self, position: int) -> dict[str, Tensor]:
        """Return the streams of the clip in row `position` as float32 [frames, width]; raises as `read_frames`."""
        streams = {}
        for stream, stored in self.read_frames([position]).items():
            parts = {"": stored.frames[0]} | ({} if stored.scale is None else {"scale": stored.scale[0]})
            streams[stream] = dequantise(parts, self.recipe.codec)
        return streams

    def read_frames(
        self, positions: Sequence[int], *, frames: int | None = None, pin_memory: bool = False
    ) -> dict[str, StoredFrames]:
        """Return the first `frames` frames (None: all) of the clips in some rows of the index, in their order.

        The bytes go from the shard to their place in the batch. With `pin_memory` that is memory that a GPU copies from
        while the CPU goes on.

        Raises:
            UserError: If the bytes are not those that were written, naming shard and clip.
            MissingError: If a shard is gone.
            OSError: If storage fails.
            TimeoutError: If it gives nothing in time.
        """
        streams = {stream: self._allocate(stream, positions, frames, pin_memory) for stream in self.recipe.streams}
        jobs = {
            self._pool.submit(self._read_clip, position, self._targets(streams, row)): position
            for row, position in enumerate(positions)
        }
        done, late = wait(jobs, self._read.timeout_seconds, return_when=FIRST_EXCEPTION)
        for job in done:
            job.result()
        if late:
            position = next(position for job, position in jobs.items() if job in late)
            raise TimeoutError(f"{self._name(position)}: not read within {self._read.timeout_seconds:g} s")
        return streams

    def _allocate(self, stream: str, positions: Sequence[int], frames: int | None, pin_memory: bool) -> StoredFrames:
        stored = self._columns[f"{stream}_frames"][positions].astype(np.int64)
        lengths = torch.from_numpy(stored if frames is None else stored.clip(max=frames))
        shape, width = (len(positions), int(lengths.max())), self.recipe.streams[stream].width
        dtype = STORED_DTYPES[self.recipe.codec]
        if pin_memory:
            values = torch.empty(*shape, width, dtype=dtype, pin_memory=True)
        else:
            nbytes = math.prod(shape) * width * dtype.itemsize
            values = torch.from_numpy(self._memory.empty(nbytes)).view(dtype).view(*shape, width)
        scale = torch.empty(shape[0], width, pin_memory=pin_memory) if self.recipe.codec == "int8" else None
        return StoredFrames(values, scale, lengths)

    def _targets(self, streams: Mapping[str, StoredFrames], row: int) -> dict[str, memoryview]:
        """Return the memory into which a clip's members are read, and zero what lies after its end."""
        targets = {}
        for stream, stored in streams.items():
            length = int(stored.lengths[row])
            stored.frames[row, length:] = 0
            targets[stream] = stored.frames[row, :length].view(-1).numpy().view(np.uint8).data
            if stored.scale is not None:
                targets[f"{stream}_scale"] = stored.scale[row].numpy().view(np.uint8).data
        return targets

    def _read_clip(self, position: int, targets: Mapping[str, memoryview]) -> None:
        """Fill the targets, member by member; where the clip is verified its whole members are read."""
        clip_id, shard = (self.index[name][position].as_py() for name in ("clip_id", "shard"))
        verified = self._is_verified(clip_id)
        extents = {name: self._extent(name, position, target, verified) for name, target in targets.items()}
        try:
            self._shards.get(storage.join(self.uri, "shards", shard)).read(extents.values())
        except EOFError as error:
            raise UserError(f"{self._name(position)}: {error}") from None
        except FileNotFoundError:
            raise MissingError(f"{self._name(position)}: no such file") from None
        except OSError as error:
            raise OSError(f"{self._name(position)}: {error}") from error
        for name, extent in extents.items() if verified else ():
            checksum = 0
            for buffer in extent.buffers:
                checksum = zlib.crc32(buffer, checksum)
            if checksum != self._columns[f"{name}_crc32"][position]:
                raise UserError(f"{self.uri}: shards/{shard}: {name} of clip {clip_id} is damaged")

    def _extent(self, member: str, position: int, target: memoryview, verified: bool) -> Extent:
        """Return where a member's first values lie; with what stands before and after them if it is verified."""
        offset, nbytes = (int(self._columns[f"{member}_{name}"][position]) for name in ("offset", "nbytes"))
        stream = member.removesuffix("_scale")
        width = self.recipe.streams[stream].width
        values = width if member != stream else width * int(self._columns[f"{stream}_frames"][position])
        header = nbytes - values * self._itemsize(member)
        if not verified:
            return Extent(offset + header, [target])
        rest = nbytes - header - target.nbytes
        return Extent(offset, [memoryview(bytearray(header)), target, memoryview(bytearray(rest))])

    def read_nbytes(self, positions: Sequence[int] | Integers, *, frames: int | None = None) -> Integers:
        """Return how many bytes `read_frames` takes from storage for each of the clips [N]."""
        whole_N = np.array([self._is_verified(clip) for clip in self.index["clip_id"].take(positions).to_pylist()])
        ranges = [self._ranges(member, positions, frames, whole_N) for member in member_names(self.recipe)]
        nbytes_N = sum((end_N - start_N for start_N, end_N in ranges), np.zeros(len(positions), np.int64))
        if not storage.is_local(self.uri):  # what lies between near ones comes along
            for (_, end_N), (start_N, _) in itertools.pairwise(ranges):
                nbytes_N += np.where(start_N - end_N <= GAP_BYTES, start_N - end_N, 0)
        return nbytes_N

    def _ranges(
        self, member: str, positions: Sequence[int] | Integers, frames: int | None, whole_N: Booleans
    ) -> tuple[Integers, Integers]:
        """Return where `_extent` begins and ends in each of the clips [N]."""
        offset_N, nbytes_N = (self._columns[f"{member}_{name}"][positions] for name in ("offset", "nbytes"))
        stream = member.removesuffix("_scale")
        rows_N = (
            self._columns[f"{stream}_frames"][positions].astype(np.int64)
            if member == stream
            else np.ones_like(offset_N)
        )
        heard_N = rows_N if frames is None else np.minimum(rows_N, frames)
        row_nbytes = self.recipe.streams[stream].width * self._itemsize(member)
        first_N = offset_N + nbytes_N - rows_N * row_nbytes
        start_N, end_N = (
            np.where(whole_N, offset_N, first_N),
            np.where(whole_N, offset_N + nbytes_N, first_N + heard_N * row_nbytes),
        )
        return start_N, end_N

    def _is_verified(self, clip_id: str) -> bool:
        return zlib.crc32(clip_id.encode()) < self._read.verify_fraction * 2**32

    def _itemsize(self, member: str) -> int:
        return 4 if member.endswith("_scale") else STORED_DTYPES[self.recipe.codec].itemsize

    def _name(self, position: int) -> str:
        clip_id, shard = (self.index[name][position].as_py() for name in ("clip_id", "shard"))
        return f"{storage.join(self.uri, 'shards', shard)}: clip {clip_id}"
