"""Where the clips of a cache are, as plain numbers: 72 bytes a clip, made from the index once for all of a machine."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import storage
from pipelines.cache.bounds import check_index
from pipelines.cache.index import FIDELITY, index_schema, member_names, shard_nbytes
from pipelines.cache.recipe import Recipe
from pipelines.errors import UserError
from pipelines.storage.arrays import Booleans, Integers, Keys, numbers

VERSION = 1
"""Of the table's columns and of what is checked before a number stands there."""
UNCHECKED = ("source_digest", "doubt", "_width", "_dtype", *FIDELITY)
"""How the columns of an index end that say nothing about where a clip is, or what the recipe says."""
FETCH_THREADS = 16
"""They wait for an object store; pyarrow's client has 25 connections."""
READ_NBYTES = 20_000_000
"""Of index files whose rows are in memory as they were read."""
SMALL_NBYTES, SMALL_FILES = 4_000_000, 16
"""An index up to this large, and an object store's of so few files, is read by each process for itself: in a second."""
DIGITS = 32
"""Of a clip's id, which is 16 bytes."""
_NIBBLE = np.full(256, 255, np.uint8)
_NIBBLE[[ord(digit) for digit in "0123456789abcdef"]] = range(16)


@dataclass(frozen=True)
class IndexFiles:
    """The index files of a cache as they lie there, in the order of its rows."""

    cache: str
    files: Sequence[tuple[str, int, int]]
    """Name, bytes and time of last change of each."""

    @classmethod
    def of(cls, cache: str) -> "IndexFiles":
        """List them, units in ascending order."""
        found = storage.list_files(storage.join(cache, "index"), ".parquet")
        return cls(cache, sorted(found, key=lambda file: unit_of(file[0])))

    def key(self, recipe: Recipe) -> str:
        """Name these files with what is made of them; a changed one gives another name."""
        digest = hashlib.sha256(json.dumps([VERSION, recipe.digest]).encode())
        for name, nbytes, changed in self.files:
            digest.update(f"{name} {nbytes} {changed}\n".encode())
        return digest.hexdigest()[:32]

    @property
    def is_small(self) -> bool:
        if storage.is_local(self.cache):
            return sum(nbytes for _, nbytes, _ in self.files) <= SMALL_NBYTES
        return len(self.files) <= SMALL_FILES


def clip_table(files: IndexFiles, recipe: Recipe) -> pa.Table:
    """Return the clips [N] of a cache in the order of its index files, in one chunk.

    Columns are id_high and id_low, the halves of an id as uint64; unit, its index file's number; seconds; each member's
    offset and crc32 and each stream's frames, as in the index; by_id, the rows ordered by id, and sorted_high, id_high
    in that order.

    Raises:
        UserError: If an index file is damaged or holds a number that cannot be true.
        OSError: If storage fails.
    """
    if files.is_small:
        return _make(files, recipe, None)
    name = f"index-{hashlib.sha256(storage.full_path(files.cache).encode()).hexdigest()[:16]}"
    return storage.snapshot(name, files.key(recipe), lambda before: _make(files, recipe, before))


def read_index_rows(
    cache: str, recipe: Recipe, names: Sequence[str], *, checked_only: bool = False
) -> tuple[pa.Table, Integers]:
    """Return index files one after the other, checked, and which of the files each row is from.

    A column that an older file lacks is null there. With `checked_only` there are the columns that are checked.

    pyarrow's `read_table` does this too, and loads 40 MB of its datasets' code for it.
    """
    folder, schema = storage.join(cache, "index"), index_schema(recipe)
    if checked_only:
        schema = pa.schema([field for field in schema if not field.name.endswith(UNCHECKED)])

    uris = [storage.join(folder, name) for name in names]
    tables, ends = [], []
    for table in storage.read_small_parquets(uris, schema, threads=FETCH_THREADS):
        ends.append(shard_nbytes(table.schema))
        tables.append(_completed(table, schema))
    index = pa.concat_tables([schema.empty_table(), *tables]).combine_chunks()
    file_N = np.repeat(np.arange(len(names)), [len(table) for table in tables])
    check_index(
        index,
        recipe,
        shards=pa.array([f"{name.removesuffix('.parquet')}.tar" for name in names], pa.string()).take(pa.array(file_N)),
        ends_N=np.array(ends, np.int64)[file_N],
        place=lambda row: storage.join(folder, names[file_N[row]]),
    )
    return index, file_N


def _completed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table's columns in a schema's order, nulls where it lacks one."""
    if table.schema.names == schema.names:
        return table
    return pa.table(
        [
            table[field.name] if field.name in table.schema.names else pa.nulls(len(table), field.type)
            for field in schema
        ],
        schema,
    )


def _make(files: IndexFiles, recipe: Recipe, before: pa.Table | None) -> pa.Table:
    """Make the table anew; rows of files that have not changed come from the one that was made before."""
    known = _known_rows(before)
    read = [place for place, file in enumerate(files.files) if file not in known]
    blocks: dict[int, pa.Table] = {}
    for places in _in_parts(files, read):
        names = [files.files[place][0] for place in places]
        index, file_N = read_index_rows(files.cache, recipe, names, checked_only=True)
        rows = _plain(index, recipe, np.array([unit_of(name) for name in names], np.int32)[file_N])
        counts = np.bincount(file_N, minlength=len(names))
        starts = counts.cumsum() - counts
        blocks |= {place: rows.slice(*part) for place, *part in zip(places, starts, counts, strict=True)}
    parts = [
        before.select(_columns(recipe)).slice(*known[file]) if before and file in known else blocks[place]
        for place, file in enumerate(files.files)
    ]
    table = pa.concat_tables(parts).combine_chunks()
    high_N = numbers(table["id_high"])
    order_N = np.argsort(high_N, kind="stable").astype(np.uint32)
    table = table.append_column("by_id", pa.array(order_N)).append_column("sorted_high", pa.array(high_N[order_N]))
    said = {"files": json.dumps([[*file, len(part)] for file, part in zip(files.files, parts, strict=True)])}
    return table.replace_schema_metadata(said)


def _in_parts(files: IndexFiles, places: Sequence[int]) -> Iterator[list[int]]:
    part, nbytes = [], 0
    for place in places:
        part.append(place)
        nbytes += files.files[place][1]
        if nbytes >= READ_NBYTES:
            yield part
            part, nbytes = [], 0
    if part:
        yield part


def _known_rows(before: pa.Table | None) -> dict[tuple[str, int, int], tuple[int, int]]:
    """Return first row and number of rows of each index file that a table was made from."""
    if before is None:
        return {}
    known, first = {}, 0
    for name, nbytes, changed, rows in json.loads(before.schema.metadata[b"files"]):
        known[name, nbytes, changed] = first, rows
        first += rows
    return known


def _columns(recipe: Recipe) -> list[str]:
    members = [f"{member}_{what}" for member in member_names(recipe) for what in ("offset", "crc32")]
    return ["id_high", "id_low", "unit", "seconds", *members, *(f"{stream}_frames" for stream in recipe.streams)]


def _plain(index: pa.Table, recipe: Recipe, unit_N: np.ndarray[Any, np.dtype[np.int32]]) -> pa.Table:
    """Return rows of the index as numbers."""
    keys_N2, is_id_N = id_keys(index["clip_id"].combine_chunks())
    if not is_id_N.all():
        clip_id, shard = (index[name][int(np.argmin(is_id_N))].as_py() for name in ("clip_id", "shard"))
        raise UserError(f"shards/{shard}: clip_id is {clip_id!r}; it must be {DIGITS} hexadecimal digits")
    columns = {"id_high": pa.array(keys_N2[:, 0]), "id_low": pa.array(keys_N2[:, 1]), "unit": pa.array(unit_N)}
    for name in _columns(recipe)[3:]:
        columns[name] = index[name].combine_chunks().cast(pa.uint32()) if name.endswith("_crc32") else index[name]
    return pa.table(columns)


def unit_of(name: str) -> int:
    """Return the unit of an index file by its name."""
    return int(name.removesuffix(".parquet"))


def id_keys(ids: pa.Array) -> tuple[Keys, Booleans]:
    """Return the halves of clip ids [N] as uint64 [N, 2], and which texts are ids, bool [N]; the others are 0."""
    is_id_N = np.asarray(pc.fill_null(pc.equal(pc.binary_length(ids), DIGITS), False))
    if not is_id_N.all():
        ids = pc.if_else(pa.array(is_id_N), ids, "0" * DIGITS)
    text = np.frombuffer(pc.cast(ids, pa.binary()).cast(pa.binary(DIGITS)).buffers()[1], np.uint8)
    first = ids.offset if len(text) != len(ids) * DIGITS else 0
    digits_ND = _NIBBLE[text.reshape(-1, DIGITS)[first : first + len(ids)]]
    is_hex_N = (digits_ND < 16).all(axis=1)
    bytes_NB = (digits_ND[:, 0::2] << 4) | (digits_ND[:, 1::2] & 15)
    keys_N2: Keys = np.ascontiguousarray(bytes_NB).view(">u8").astype(np.uint64)
    return keys_N2, is_id_N & is_hex_N


def find_rows(table: pa.Table, ids: pa.Array) -> Integers:
    """Return each clip's row in a table as from `clip_table`, -1 where it is not there; int64 [N]."""
    keys_N2, is_id_N = id_keys(ids)
    found_N = np.full(len(ids), -1, np.int64)
    sorted_R, by_id_R, low_R = (numbers(table[name]) for name in ("sorted_high", "by_id", "id_low"))
    # Neighbours in a sorted search touch the same pages of the map.
    left = np.argsort(keys_N2[:, 0], kind="stable")
    left = left[is_id_N[left]]
    place_N = np.searchsorted(sorted_R, keys_N2[left, 0])
    while len(left):
        inside = place_N < len(sorted_R)
        inside[inside] = sorted_R[place_N[inside]] == keys_N2[left[inside], 0]
        left, place_N = left[inside], place_N[inside]
        rows_N = by_id_R[place_N]
        same_N = low_R[rows_N] == keys_N2[left, 1]
        found_N[left[same_N]] = rows_N[same_N]
        left, place_N = left[~same_N], place_N[~same_N] + 1  # another id may begin with the same 16 digits
    return found_N
