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
import json
import zlib
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
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
from pipelines.manifest import Clip
from pipelines.plan import unit_name
from pipelines.recipe import Recipe, read_recipe

TAR_BLOCK = 512
OPEN_SHARDS = 64
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


class FeatureCache:
    """A cache opened for reading: clips by their position in the index, in ranged reads.

    The index is held in memory: about 230 bytes per clip, 2 GB for ten million.

    Raises:
        FileNotFoundError: If there is no cache.
        ValueError: If no shard is complete.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.recipe, self.encoders = read_recipe(uri)
        if not committed_units(uri):
            raise ValueError(f"{uri}: holds no complete shard yet")
        filesystem, path = storage.resolve(storage.join(uri, "index"))
        schema = index_schema(self.recipe)
        self.index = pq.read_table(path, schema=schema, filesystem=filesystem).combine_chunks()
        self._shards: OrderedDict[str, BinaryIO] = OrderedDict()

    def positions(self, clip_ids: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return each clip's row in the index, -1 where the cache does not hold it."""
        found = pc.index_in(pa.array(clip_ids, pa.string()), value_set=self.index["clip_id"])
        return np.asarray(found.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)

    def read(self, position: int) -> dict[str, Tensor]:
        """Return the streams of the clip in row `position` as float32 [frames, width].

        Raises:
            ValueError: If the bytes are not those that were written, naming shard and clip.
        """
        row = self.index.slice(position, 1).to_pylist()[0]
        streams = {}
        for stream in self.recipe.streams:
            shape = (row[f"{stream}_frames"], row[f"{stream}_width"])
            parts = {"": self._array(row, stream, np.dtype(row[f"{stream}_dtype"]), shape)}
            if self.recipe.codec == "int8":
                parts["scale"] = self._array(row, f"{stream}_scale", np.dtype(np.float32), shape[1:])
            streams[stream] = dequantise(parts, self.recipe.codec)
        return streams

    def _array(self, row: Mapping[str, Any], member: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Tensor:
        nbytes = row[f"{member}_nbytes"]
        data = self._read_range(row["shard"], row[f"{member}_offset"], nbytes)
        try:
            check_member(data, row, member)
        except ValueError as error:
            raise ValueError(f"{self.uri}: {error}") from None
        values = int(np.prod(shape))
        array = np.frombuffer(bytearray(data), dtype, count=values, offset=nbytes - values * dtype.itemsize)
        return torch.from_numpy(array.reshape(shape))

    def _read_range(self, shard: str, offset: int, nbytes: int) -> bytes:
        if shard not in self._shards:
            self._shards[shard] = storage.open_file(storage.join(self.uri, "shards", shard))
        self._shards.move_to_end(shard)
        if len(self._shards) > OPEN_SHARDS:
            self._shards.popitem(last=False)[1].close()
        file = self._shards[shard]
        file.seek(offset)
        return file.read(nbytes)
