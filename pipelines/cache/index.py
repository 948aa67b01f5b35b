"""A shard's index: where each clip's arrays are in the tar; a shard exists once its index does."""

import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from encoders.features import STORED_TYPES, Fidelity
from pipelines import storage
from pipelines.cache.layout import MOST_DIGITS, unit_files, unit_name
from pipelines.cache.recipe import Recipe
from pipelines.errors import UserError

NAMES_AND_LENGTHS = pa.schema([("clip_id", pa.string()), ("shard", pa.string()), ("seconds", pa.float64())])
"""Columns that an index of any recipe has."""
TAR_BLOCK = 512
FIDELITY = tuple(measure.name for measure in fields(Fidelity))
REJECT_SCHEMA = pa.schema(
    [("clip_id", pa.string()), ("recording", pa.string()), ("stage", pa.string()), ("error", pa.string())]
)


def member_names(recipe: Recipe) -> list[str]:
    """Return a clip's array members: one per stream, and one of scales per stream for int8."""
    parts = STORED_TYPES[recipe.codec].parts
    return [member_name(stream, part) for stream in sorted(recipe.streams) for part in parts]


def member_name(stream: str, part: str) -> str:
    """Return the name of a stream's frames (part "") or of what belongs to them."""
    return f"{stream}_{part}" if part else stream


def index_schema(recipe: Recipe) -> pa.Schema:
    """Return the index's columns: offset and nbytes are of the member's .npy file inside the tar.

    Those of a stream's fidelity are null where the clip was not among its shard's sampled ones, `doubt` where there is
    none.
    """
    columns: list[Any] = [*NAMES_AND_LENGTHS, ("source_digest", pa.string())]
    if recipe.preprocessing_version >= 3:
        columns.append(("doubt", pa.string()))
    for member in member_names(recipe):
        columns += [(f"{member}_offset", pa.int64()), (f"{member}_nbytes", pa.int64()), (f"{member}_crc32", pa.int64())]
    for stream in sorted(recipe.streams):
        columns += [(f"{stream}_frames", pa.int32()), (f"{stream}_width", pa.int32()), (f"{stream}_dtype", pa.string())]
        columns += [(f"{stream}_{name}", pa.float32()) for name in FIDELITY]
    return pa.schema(columns)


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """What one committed shard holds; all that travels back to the driver."""

    unit: int
    clips: int
    rejects: int
    seconds: float
    nbytes: int
    lowest_snr_db: float | None = None
    """[dB] Of any stream of its sampled clips; None where none was measured."""


def committed_units(cache: str) -> frozenset[int]:
    """Return the units whose index file exists; nothing else of a shard is ever believed."""
    return frozenset(unit_files(cache, "index"))


def read_rejects(cache: str, units: Collection[int]) -> pa.Table:
    """Return the rejected clips of some committed units, in the columns of `REJECT_SCHEMA`."""
    names = [name for unit, name in unit_files(cache, "rejects").items() if unit in units]
    uris = [storage.join(cache, "rejects", name) for name in names]
    tables = [storage.read_parquet(uri, REJECT_SCHEMA).select(REJECT_SCHEMA.names) for uri in uris]
    return pa.concat_tables([REJECT_SCHEMA.empty_table(), *(table.cast(REJECT_SCHEMA) for table in tables)])


def read_index(cache: str, unit: int) -> pa.Table:
    """Return a committed unit's index: its clips in the tar's order.

    Raises:
        UserError: If it is not Parquet, damaged, or has no clips' names and lengths.
    """
    return storage.read_parquet(storage.join(cache, "index", f"{unit_name(unit)}.parquet"), NAMES_AND_LENGTHS)


def write_index(cache: str, unit: int, index: pa.Table) -> None:
    """Write a unit's index, which commits the unit.

    A large cache has thousands of these small files. pyarrow makes a new decoder of zstd for each page, which takes
    longer than the page's hundred rows, so they are in snappy, one page a column.
    """
    uri = storage.join(cache, "index", f"{unit_name(unit)}.parquet")
    storage.write_table(uri, index, compression="snappy", use_dictionary=False)


def committed_shard(cache: str, unit: int) -> ShardInfo | None:
    """Return what a unit's index says of its shard, or None where there is no index yet."""
    if not storage.file_exists(storage.join(cache, "index", f"{unit_name(unit)}.parquet")):
        return None
    index = read_index(cache, unit)
    rejects, reject_uri = 0, storage.join(cache, "rejects", f"{unit_name(unit)}.parquet")
    if storage.file_exists(reject_uri):
        with storage.open_parquet(reject_uri) as file:
            rejects = file.metadata.num_rows
    return shard_info(unit, index, rejects, shard_nbytes(index.schema))


def shard_nbytes(schema: pa.Schema) -> int:
    """Return how long an index says that its shard is; 0 where it does not, so that nothing lies inside."""
    said = (schema.metadata or {}).get(b"shard_nbytes", b"")
    return int(said) if said.isdigit() and len(said) < MOST_DIGITS else 0


def shard_info(unit: int, index: pa.Table, rejects: int, nbytes: int) -> ShardInfo:
    snrs = [pc.min(index[name]).as_py() for name in index.column_names if name.endswith("_snr_db")]
    lowest = min((snr for snr in snrs if snr is not None), default=None)
    return ShardInfo(
        unit=unit,
        clips=index.num_rows,
        rejects=rejects,
        seconds=float(pc.sum(index["seconds"]).as_py() or 0),
        nbytes=nbytes,
        lowest_snr_db=lowest,
    )


def check_member(data: bytes, row: Mapping[str, Any], member: str) -> None:
    """Compare the bytes of an array's .npy file with its row of the index.

    Raises:
        UserError: If they are not the bytes that were written.
    """
    if len(data) != row[f"{member}_nbytes"] or zlib.crc32(data) != row[f"{member}_crc32"]:
        raise UserError(f"shards/{row['shard']}: {member} of clip {row['clip_id']} is damaged")


def read_members(file: BinaryIO, row: Mapping[str, Any], recipe: Recipe) -> dict[str, bytes]:
    """Return a clip's .npy files from an open shard, by its row of the index; raises as `check_member`."""
    members = {}
    for member in member_names(recipe):
        file.seek(row[f"{member}_offset"])
        members[member] = file.read(row[f"{member}_nbytes"])
        check_member(members[member], row, member)
    return members
