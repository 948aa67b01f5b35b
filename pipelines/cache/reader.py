"""The feature cache opened for reading: clips by their position in the index, in ranged reads by several threads."""

import math
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from encoders.codecs import dequantise
from encoders.features import STORED_TYPES
from pipelines import storage
from pipelines.cache.clip_index import ClipIndex, Frames, MemberPlaces
from pipelines.cache.index import member_name, member_names
from pipelines.cache.read_config import ReadConfig
from pipelines.errors import MissingError, UserError
from pipelines.storage.ahead import DaemonPool
from pipelines.storage.memory import BatchMemory
from pipelines.storage.ranges import Extent, OpenFiles

OPEN_SHARDS = 256
OPEN_OBJECTS = 65_536
"""An object that is open is its length; asking for that is a request."""


@dataclass(frozen=True)
class StoredFrames:
    """A stream's first frames of some clips, as they are stored. B clips, T frames, C channels."""

    frames: Tensor
    """[B, T, C] float16 or int8, zeros after a clip's end; T is the longest clip's."""
    scale: Tensor | None
    """[B, C] float32, by which int8 is multiplied; None for float16."""
    lengths: Tensor
    """[B] int64, frames of each clip."""


@dataclass(frozen=True)
class ClipFeatures:
    """What the encoders made of a clip."""

    streams: Mapping[str, Tensor]
    """Stream -> float32 [frames, width], 50 frames a second."""
    seconds: float
    """[seconds] Length of the clip."""


class FeatureCache(ClipIndex):
    """A cache whose clips' frames can be read; raises as `ClipIndex`."""

    def __init__(self, uri: str, read: ReadConfig | None = None, *, whole_shards: int = 0) -> None:
        """Open the cache; by default the checksums of all clips that are read are compared.

        With `whole_shards` remote shards are fetched from end to end, and so many kept as temporary files of this
        machine, instead of ranges of them.
        """
        super().__init__(uri, read)
        self._pool = DaemonPool(self._read.threads)
        self._memory = BatchMemory()
        self._shards = (
            OpenFiles(whole_shards, storage.open_copy)
            if whole_shards
            else OpenFiles(OPEN_SHARDS if storage.is_local(uri) else OPEN_OBJECTS)
        )

    @classmethod
    def open(cls, uri: str) -> "FeatureCache":
        """Open a cache. Raises as `ClipIndex`."""
        return cls(uri)

    def __getitem__(self, clip_id: str) -> ClipFeatures:
        """Return a clip's features.

        Raises:
            KeyError: If the cache does not hold the clip. Otherwise as `read_frames`.
        """
        position = int(self.positions([clip_id])[0])
        if position < 0:
            raise KeyError(f"{self.uri}: no clip {clip_id}")
        return ClipFeatures(self.read(position), float(self.seconds[position]))

    def read(self, position: int, frames: int | None = None) -> dict[str, Tensor]:
        """Return the streams of the clip in row `position` as float32 [frames, width]; raises as `read_frames`."""
        streams = {}
        for stream, stored in self.read_frames([position], frames=frames).items():
            parts = {"": stored.frames[0]} | ({} if stored.scale is None else {"scale": stored.scale[0]})
            streams[stream] = dequantise(parts, self.recipe.codec)
        return streams

    def read_frames(
        self, positions: Sequence[int], *, frames: Frames = None, pin_memory: bool = False
    ) -> dict[str, StoredFrames]:
        """Return the first frames of the clips in some rows of the index, in their order: `frames` of each, or all.

        The bytes go from the shard to their place in the batch. With `pin_memory` that is memory that a GPU copies from
        while the CPU goes on.

        Raises:
            IndexError: If a position is no row of the index, such as the -1 of a clip that the cache lacks.
            UserError: If the bytes are not the written ones, naming shard and clip.
            MissingError: If a shard is gone.
            OSError: If storage fails.
            TimeoutError: If it gives nothing in time.
        """
        for position in positions:
            if not 0 <= position < self.num_clips:
                raise IndexError(f"{self.uri}: no row {position} among {self.num_clips}; -1: no such clip")
        streams = {stream: self._allocate(stream, positions, frames, pin_memory) for stream in self.recipe.streams}
        places = {member: self.places(member, positions, frames) for member in member_names(self.recipe)}
        jobs = {
            self._pool.submit(self._read_clip, position, row, places, self._targets(streams, row)): position
            for row, position in enumerate(positions)
        }
        done, late = wait(jobs, self._read.timeout_seconds, return_when=FIRST_EXCEPTION)
        for job in done:
            job.result()
        if late:
            position = next(position for job, position in jobs.items() if job in late)
            raise TimeoutError(f"{self.name_clip(position)}: not read within {self._read.timeout_seconds:g} s")
        return streams

    def _allocate(self, stream: str, positions: Sequence[int], frames: Frames, pin_memory: bool) -> StoredFrames:
        lengths = torch.from_numpy(self.frames_of(stream, positions, frames=frames))
        shape, width = (len(positions), int(lengths.max())), self.recipe.streams[stream].width
        stored = STORED_TYPES[self.recipe.codec]
        dtype: torch.dtype = getattr(torch, stored.dtype)
        if pin_memory:
            values = torch.empty(*shape, width, dtype=dtype, pin_memory=True)
        else:
            nbytes = math.prod(shape) * width * dtype.itemsize
            values = torch.from_numpy(self._memory.empty(nbytes)).view(dtype).view(*shape, width)
        scale = torch.empty(shape[0], width, pin_memory=pin_memory) if "scale" in stored.parts else None
        return StoredFrames(values, scale, lengths)

    def _targets(self, streams: Mapping[str, StoredFrames], row: int) -> dict[str, memoryview]:
        """Return the memory into which a clip's members are read, and zero the rest after its end."""
        targets = {}
        for stream, stored in streams.items():
            length = int(stored.lengths[row])
            stored.frames[row, length:] = 0
            targets[stream] = stored.frames[row, :length].view(-1).numpy().view(np.uint8).data
            if stored.scale is not None:
                targets[member_name(stream, "scale")] = stored.scale[row].numpy().view(np.uint8).data
        return targets

    def _read_clip(
        self, position: int, row: int, places: Mapping[str, MemberPlaces], targets: Mapping[str, memoryview]
    ) -> None:
        """Fill the targets, member by member; where the clip is verified its whole members are read."""
        shard, verified = self.shard(position), bool(self.are_verified([position])[0])
        extents = {name: _extent(places[name], row, target, verified) for name, target in targets.items()}
        try:
            self._shards.get(storage.join(self.uri, "shards", shard)).read(extents.values())
        except EOFError as error:
            raise UserError(f"{self.name_clip(position)}: {error}") from None
        except FileNotFoundError:
            raise MissingError(f"{self.name_clip(position)}: no such file") from None
        except OSError as error:
            raise OSError(f"{self.name_clip(position)}: {error}") from error
        for name, extent in extents.items() if verified else ():
            checksum = 0
            for buffer in extent.buffers:
                checksum = zlib.crc32(buffer, checksum)
            if checksum != self._columns[f"{name}_crc32"][position]:
                raise UserError(f"{self.uri}: shards/{shard}: {name} of clip {self.clip_id(position)} is damaged")


def _extent(places: MemberPlaces, row: int, target: memoryview, verified: bool) -> Extent:
    """Return where a member's first values are; with what stands before and after them if it is verified."""
    start, values, end = int(places.start[row]), int(places.values[row]), int(places.end[row])
    if not verified:
        return Extent(values, [target])
    rest = end - values - target.nbytes
    return Extent(start, [memoryview(bytearray(values - start)), target, memoryview(bytearray(rest))])
