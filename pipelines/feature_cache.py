"""The feature cache on disk: shards that any WebDataset tool reads, made random-access by their index.

<cache>/recipe.json            what determines the features' bytes
        units/000000.parquet   the plan: which clip goes into which shard
        shards/000042.tar      per clip: speech.npy, audio.npy, json (and their scales for int8)
        index/000042.parquet   one row per clip: where its members lie in the tar; a shard exists once this file does
        rejects/000042.parquet the clips that could not be decoded, with the reason
        jobs/<time>.json       what ran
"""

import hashlib
import io
import itertools
import json
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from dataclasses import dataclass, field, fields
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor
from webdataset import TarWriter

from encoders.audio import AudioError
from encoders.codecs import Fidelity, dequantise
from pipelines import storage
from pipelines.id_set import Booleans
from pipelines.manifest import Clip
from pipelines.plan import Integers, unit_name
from pipelines.reading import GAP_BYTES, DaemonPool, Extent, OpenFiles, ReadConfig
from pipelines.recipe import Recipe, read_recipe

TAR_BLOCK = 512
OPEN_SHARDS = 256
OPEN_OBJECTS = 65_536
"""An object that is open is its length; asking for that is a request."""
STORED_DTYPES = {"float16": torch.float16, "int8": torch.int8}
FIDELITY = tuple(measure.name for measure in fields(Fidelity))
REJECT_SCHEMA = pa.schema(
    [("clip_id", pa.string()), ("recording", pa.string()), ("stage", pa.string()), ("error", pa.string())]
)


def member_names(recipe: Recipe) -> list[str]:
    """Return a clip's array members: one per stream, and one of scales per stream for int8."""
    parts = ("", "_scale") if recipe.codec == "int8" else ("",)
    return [stream + part for stream in sorted(recipe.streams) for part in parts]


def index_schema(recipe: Recipe) -> pa.Schema:
    """Return the index's columns: offset and nbytes are those of the member's .npy file inside the tar.

    Those of a stream's fidelity are null where the clip was not among its shard's sampled ones.
    """
    columns: list[tuple[str, pa.DataType]] = [
        ("clip_id", pa.string()),
        ("shard", pa.string()),
        ("seconds", pa.float64()),
    ]
    columns.append(("source_digest", pa.string()))
    for member in member_names(recipe):
        columns += [(f"{member}_offset", pa.int64()), (f"{member}_nbytes", pa.int64()), (f"{member}_crc32", pa.int64())]
    for stream in sorted(recipe.streams):
        columns += [(f"{stream}_frames", pa.int32()), (f"{stream}_width", pa.int32()), (f"{stream}_dtype", pa.string())]
        columns += [(f"{stream}_{name}", pa.float32()) for name in FIDELITY]
    return pa.schema(columns)


@dataclass(frozen=True)
class ShardInfo:
    """What one committed shard holds; all that travels back to the driver."""

    unit: int
    clips: int
    rejects: int
    seconds: float
    nbytes: int
    lowest_snr_db: float | None = None
    """[dB] Of any stream of its sampled clips; None where none was measured."""


@dataclass(frozen=True)
class EncodedClip:
    """A clip's features: stream -> part ("" or "scale") -> array, as `quantise` gives them; if sampled, how near."""

    clip: Clip
    streams: Mapping[str, Mapping[str, Tensor]]
    seconds: float
    source_digest: str
    fidelity: Mapping[str, Fidelity] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredClip:
    """A clip's features as they lie in a shard: member -> .npy file; `row` of the index, shard and offsets set anew."""

    clip: Clip
    members: Mapping[str, bytes]
    row: Mapping[str, Any]


@dataclass(frozen=True)
class RejectedClip:
    """A clip that could not be decoded."""

    clip: Clip
    error: AudioError


class AlreadyCommittedError(Exception):
    """Another writer committed the unit first; what it wrote stays."""


def write_shard(
    cache: str,
    unit: int,
    recipe: Recipe,
    clips: Iterable[EncodedClip | StoredClip | RejectedClip],
    *,
    replace: bool = False,
) -> ShardInfo:
    """Write one unit: tar to a temporary name, then shard, rejects and, last, the index that makes it exist.

    Members lie in the order of `clips`; times and owners are fixed, so the same features give the same bytes. An
    exception on the way publishes nothing that is ever read. To `replace` a shard its index is taken away first.

    Raises:
        AlreadyCommittedError: If the unit has been committed meanwhile, and is not to be replaced.
    """
    shard, rows, rejects = f"{unit_name(unit)}.tar", [], []
    index_uri = storage.join(cache, "index", f"{unit_name(unit)}.parquet")
    with storage.staged_file(storage.join(cache, "shards", shard)) as path, path.open("w+b") as file:
        with TarWriter(file, encoder=False, mtime=0, user="", group="") as tar:
            for clip in clips:
                if isinstance(clip, RejectedClip):
                    rejects.append(_reject_row(clip))
                else:
                    stored = clip if isinstance(clip, StoredClip) else _stored(clip)
                    rows.append({**stored.row, "shard": shard, **_write_clip(tar, stored)})
        file.flush()
        nbytes = file.seek(0, io.SEEK_END)
        file.seek(0)
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
        if storage.file_exists(index_uri):
            if not replace:
                raise AlreadyCommittedError(index_uri)
            storage.delete_file(index_uri)
    reject_uri = storage.join(cache, "rejects", f"{unit_name(unit)}.parquet")
    if rejects:
        storage.write_table(reject_uri, pa.Table.from_pylist(rejects, schema=REJECT_SCHEMA))
    elif storage.file_exists(reject_uri):
        storage.delete_file(reject_uri)  # of an attempt that did not reach its index
    index = pa.Table.from_pylist(rows, schema=index_schema(recipe))
    about = {"shard_nbytes": str(nbytes), "shard_sha256": checksum, "recipe": recipe.digest}
    storage.write_table(index_uri, index.replace_schema_metadata(about))
    return _shard_info(unit, index, len(rejects), nbytes)


def _reject_row(rejected: RejectedClip) -> dict[str, str]:
    clip, error = rejected.clip, rejected.error
    recording = ", ".join(clip.recordings)
    return {"clip_id": clip.clip_id, "recording": recording, "stage": error.stage, "error": str(error)}


def _stored(encoded: EncodedClip) -> StoredClip:
    arrays = {
        f"{stream}_{part}" if part else stream: array.cpu().numpy()
        for stream, parts in encoded.streams.items()
        for part, array in parts.items()
    }
    members = {name: _npy_bytes(array) for name, array in arrays.items()}
    row: dict[str, Any] = {"clip_id": encoded.clip.clip_id, "seconds": encoded.seconds}
    row["source_digest"] = encoded.source_digest
    for name, data in members.items():
        row |= {f"{name}_nbytes": len(data), f"{name}_crc32": zlib.crc32(data)}
    for stream in encoded.streams:
        frames, width = arrays[stream].shape
        row |= {f"{stream}_frames": frames, f"{stream}_width": width, f"{stream}_dtype": str(arrays[stream].dtype)}
    for stream, fidelity in encoded.fidelity.items():
        row |= {f"{stream}_{name}": value for name, value in vars(fidelity).items()}
    return StoredClip(encoded.clip, members, row)


def _write_clip(tar: TarWriter, stored: StoredClip) -> dict[str, int]:
    """Append a clip's members to the tar and return the columns of the index that say where they lie."""
    clip = stored.clip
    about = {"clip_id": clip.clip_id, "corpus": clip.corpus, "split": clip.split, "seconds": stored.row["seconds"]}
    segments = [vars(segment) for segment in clip.segments]
    members = {f"{name}.npy": data for name, data in stored.members.items()}
    members["json"] = json.dumps({**about, "segments": segments}, sort_keys=True).encode()
    offsets = _append(tar, clip.clip_id, members)
    return {f"{name}_offset": offsets[f"{name}.npy"] for name in stored.members}


def _append(tar: TarWriter, key: str, members: Mapping[str, bytes]) -> dict[str, int]:
    """Append members and return where each one's data begins; the tar writer puts them in the order of their names."""
    offsets, position = {}, tar.tarstream.offset
    for name in sorted(members):
        offsets[name] = position + TAR_BLOCK
        position = offsets[name] + -(-len(members[name]) // TAR_BLOCK) * TAR_BLOCK
    tar.write({"__key__": key, **members})
    assert tar.tarstream.offset == position, "a member took more than one header block"
    return offsets


def _npy_bytes(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def committed_units(cache: str) -> frozenset[int]:
    """Return the units whose index file exists; nothing else of a shard is ever believed."""
    names = storage.list_names(storage.join(cache, "index"), ".parquet")
    return frozenset(int(name.removesuffix(".parquet")) for name in names)


def read_rejects(cache: str, units: Collection[int]) -> pa.Table:
    """Return the rejected clips of some committed units, in the columns of `REJECT_SCHEMA`."""
    folder = storage.join(cache, "rejects")
    names = [name for name in storage.list_names(folder, ".parquet") if int(name.removesuffix(".parquet")) in units]
    tables = [REJECT_SCHEMA.empty_table()]
    for name in names:
        with storage.open_parquet(storage.join(folder, name)) as file:
            tables.append(file.read())
    return pa.concat_tables(tables)


def read_index(cache: str, unit: int) -> pa.Table:
    """Return a committed unit's index: its clips in the order in which they lie in the tar.

    Raises:
        ValueError: If it is not Parquet.
    """
    with storage.open_parquet(storage.join(cache, "index", f"{unit_name(unit)}.parquet")) as file:
        return file.read()


def committed_shard(cache: str, unit: int) -> ShardInfo | None:
    """Return what a unit's index says of its shard, or None where there is no index yet."""
    if not storage.file_exists(storage.join(cache, "index", f"{unit_name(unit)}.parquet")):
        return None
    index = read_index(cache, unit)
    rejects, reject_uri = 0, storage.join(cache, "rejects", f"{unit_name(unit)}.parquet")
    if storage.file_exists(reject_uri):
        with storage.open_parquet(reject_uri) as file:
            rejects = file.metadata.num_rows
    nbytes = int(index.schema.metadata[b"shard_nbytes"])
    return _shard_info(unit, index, rejects, nbytes)


def _shard_info(unit: int, index: pa.Table, rejects: int, nbytes: int) -> ShardInfo:
    snrs = [pc.min(index[name]).as_py() for name in index.column_names if name.endswith("_snr_db")]
    lowest = min((snr for snr in snrs if snr is not None), default=None)
    return ShardInfo(unit, index.num_rows, rejects, float(pc.sum(index["seconds"]).as_py() or 0), nbytes, lowest)


def check_member(data: bytes, row: Mapping[str, Any], member: str) -> None:
    """Compare the bytes of an array's .npy file with its row of the index.

    Raises:
        ValueError: If they are not those that were written.
    """
    if len(data) != row[f"{member}_nbytes"] or zlib.crc32(data) != row[f"{member}_crc32"]:
        raise ValueError(f"shards/{row['shard']}: {member} of clip {row['clip_id']} is damaged")


def read_stored(file: BinaryIO, row: Mapping[str, Any], clip: Clip, recipe: Recipe) -> StoredClip:
    """Return a clip as it lies in an open shard, by its row of the index; raises as `check_member`."""
    members = {}
    for member in member_names(recipe):
        file.seek(row[f"{member}_offset"])
        members[member] = file.read(row[f"{member}_nbytes"])
        check_member(members[member], row, member)
    return StoredClip(clip, members, row)


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
        FileNotFoundError: If there is no cache.
        ValueError: If no shard is complete.
    """

    def __init__(self, uri: str, read: ReadConfig | None = None) -> None:
        """Open the cache; by default the checksums of all clips that are read are compared."""
        self.uri = uri
        self.recipe, self.encoders = read_recipe(uri)
        if not committed_units(uri):
            raise ValueError(f"{uri}: holds no complete shard yet")
        filesystem, path = storage.resolve(storage.join(uri, "index"))
        schema = index_schema(self.recipe)
        self.index = pq.read_table(path, schema=schema, filesystem=filesystem).combine_chunks()
        numbers = [name for name in schema.names if name.endswith(("_offset", "_nbytes", "_crc32", "_frames"))]
        self._columns = {name: self.index[name].to_numpy() for name in numbers}
        self._read = read or ReadConfig(verify_fraction=1.0)
        self._pool = DaemonPool(self._read.threads)
        self._shards = OpenFiles(OPEN_SHARDS if storage.is_local(uri) else OPEN_OBJECTS)

    def positions(self, clip_ids: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return each clip's row in the index, -1 where the cache does not hold it."""
        found = pc.index_in(pa.array(clip_ids, pa.string()), value_set=self.index["clip_id"])
        return np.asarray(found.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)

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
            ValueError: If the bytes are not those that were written, naming shard and clip.
            FileNotFoundError: If a shard is gone.
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
        values = torch.empty(*shape, width, dtype=STORED_DTYPES[self.recipe.codec], pin_memory=pin_memory)
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
            raise ValueError(f"{self._name(position)}: {error}") from None
        except FileNotFoundError:
            raise FileNotFoundError(f"{self._name(position)}: no such file") from None
        except OSError as error:
            raise OSError(f"{self._name(position)}: {error}") from error
        for name, extent in extents.items() if verified else ():
            checksum = 0
            for buffer in extent.buffers:
                checksum = zlib.crc32(buffer, checksum)
            if checksum != self._columns[f"{name}_crc32"][position]:
                raise ValueError(f"{self.uri}: shards/{shard}: {name} of clip {clip_id} is damaged")

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
