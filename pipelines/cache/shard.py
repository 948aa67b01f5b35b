"""One shard: the features of a unit's clips, written as a WebDataset tar and committed by its index."""

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa

from encoders.audio import AudioError, Segment
from encoders.features import Fidelity, heard_frames
from pipelines import storage
from pipelines.cache.bounds import NPY_HEADER_NBYTES
from pipelines.cache.index import (
    REJECT_SCHEMA,
    TAR_BLOCK,
    ShardInfo,
    index_schema,
    member_name,
    read_members,
    shard_info,
    write_index,
)
from pipelines.cache.layout import unit_name
from pipelines.cache.recipe import Recipe
from pipelines.manifest.tables import Clip

if TYPE_CHECKING:  # whoever copies or lists shards has no need of PyTorch
    from torch import Tensor

MEMBER_MODE = 0o444
UP_TO_ITS_END = 0.0
"""The duration of a segment without one, as a shard's JSON tells it; before 2026-11-28 it was null."""


@dataclass(frozen=True)
class EncodedClip:
    """A clip's features: stream -> part ("" or "scale") -> array, as `quantise` gives them; if sampled, how near."""

    clip: Clip
    streams: Mapping[str, Mapping[str, "Tensor"]]
    seconds: float
    source_digest: str
    fidelity: Mapping[str, Fidelity] = field(default_factory=dict)
    doubt: str = ""
    """Why what was heard may not be what was recorded."""


@dataclass(frozen=True)
class StoredClip:
    """A clip's features as a shard stores them: member -> .npy file; `row` of the index, shard and offsets set anew."""

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

    Members are in the order of `clips`; times and owners are fixed, so the same features give the same bytes. An
    exception on the way publishes nothing that is ever read. To `replace` a shard its index is taken away first.

    Raises:
        AlreadyCommittedError: If the unit has been committed meanwhile, and is not to be replaced.
    """
    shard, rows, rejects = f"{unit_name(unit)}.tar", [], []
    index_uri = storage.join(cache, "index", f"{unit_name(unit)}.parquet")
    with storage.staged_file(storage.join(cache, "shards", shard)) as path, path.open("w+b") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
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
    write_index(cache, unit, index.replace_schema_metadata(about))
    return shard_info(unit, index, len(rejects), nbytes)


def _reject_row(rejected: RejectedClip) -> dict[str, str]:
    clip, error = rejected.clip, rejected.error
    recording = ", ".join(clip.recordings)
    return {"clip_id": clip.clip_id, "recording": recording, "stage": error.stage, "error": str(error)}


def _stored(encoded: EncodedClip) -> StoredClip:
    arrays = {
        member_name(stream, part): array.cpu().numpy()
        for stream, parts in encoded.streams.items()
        for part, array in parts.items()
    }
    members = {name: _npy_bytes(array) for name, array in arrays.items()}
    row: dict[str, Any] = {"clip_id": encoded.clip.clip_id, "seconds": encoded.seconds}
    row |= {"source_digest": encoded.source_digest, "doubt": encoded.doubt or None}
    for name, data in members.items():
        row |= {f"{name}_nbytes": len(data), f"{name}_crc32": zlib.crc32(data)}
    for stream in encoded.streams:
        frames, width = arrays[stream].shape
        row |= {f"{stream}_frames": frames, f"{stream}_width": width, f"{stream}_dtype": str(arrays[stream].dtype)}
    for stream, fidelity in encoded.fidelity.items():
        row |= {f"{stream}_{name}": value for name, value in vars(fidelity).items()}
    return StoredClip(encoded.clip, members, row)


def _write_clip(tar: tarfile.TarFile, stored: StoredClip) -> dict[str, int]:
    """Append a clip's members to the tar and return the columns of the index that say where they are."""
    clip = stored.clip
    about = {"clip_id": clip.clip_id, "corpus": clip.corpus, "split": clip.split, "seconds": stored.row["seconds"]}
    segments = [_told(segment) for segment in clip.segments]
    members = {f"{name}.npy": data for name, data in stored.members.items()}
    members["json"] = json.dumps({**about, "segments": segments}, sort_keys=True).encode()
    offsets = {name: _append(tar, f"{clip.clip_id}.{name}", members[name]) for name in sorted(members)}
    return {f"{name}_offset": offsets[f"{name}.npy"] for name in stored.members}


def _told(segment: Segment) -> dict[str, str | float]:
    """Return a segment as the tar tells it, of types that are the same in every clip: readers take a few for all."""
    duration_seconds = segment.duration_seconds or UP_TO_ITS_END
    return {
        "recording": segment.recording,
        "start_seconds": float(segment.start_seconds),
        "duration_seconds": float(duration_seconds),
    }


def _append(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a member with fixed times and owners, and return where its data begins."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), MEMBER_MODE
    tar.addfile(member, io.BytesIO(data))
    assert tar.fileobj
    return tar.fileobj.tell() - -(-len(data) // TAR_BLOCK) * TAR_BLOCK


def _npy_bytes(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def read_stored(file: BinaryIO, row: Mapping[str, Any], clip: Clip, recipe: Recipe) -> StoredClip:
    """Return a clip as an open shard stores it, by its row of the index; raises as `check_member`."""
    return StoredClip(clip, read_members(file, row, recipe), row)


def trimmed(stored: StoredClip) -> StoredClip:
    """Return a clip without the speech frames of the silence behind its sound."""
    frames = int(heard_frames([stored.row["seconds"]])[0])
    width, dtype = stored.row["speech_width"], stored.row["speech_dtype"]
    values = memoryview(stored.members["speech"])[NPY_HEADER_NBYTES:]  # of the size that the index says, or not read
    data = _npy_bytes(np.frombuffer(values, dtype).reshape(-1, width)[:frames])
    row = {**stored.row, "speech_nbytes": len(data), "speech_crc32": zlib.crc32(data), "speech_frames": frames}
    return StoredClip(stored.clip, {**stored.members, "speech": data}, row)


def stored_error(row: Mapping[str, Any]) -> AudioError:
    """Return the error that a row of `REJECT_SCHEMA` tells of."""
    recording, _, reason = row["error"].partition(f": {row['stage']}: ")
    return AudioError(recording, row["stage"], reason)
