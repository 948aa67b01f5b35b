"""What an index may say: numbers that cannot be true are refused before memory is taken or a shard is read by them."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encoders.features import SCALE_NBYTES, STORED_TYPES
from pipelines import storage
from pipelines.cache.index import FIDELITY, TAR_BLOCK, index_schema, member_name, shard_nbytes
from pipelines.cache.layout import unit_name
from pipelines.cache.recipe import Recipe
from pipelines.errors import UserError
from pipelines.storage.arrays import Booleans, Integers

NPY_HEADER_NBYTES = 128
"""Of every array that a shard holds: NumPy fills up to a multiple of 64, and no shape here needs more."""
CLIP_ID_DIGITS = 32


def check_index(
    table: pa.Table, recipe: Recipe, *, shards: pa.Array, ends_N: Integers, place: Callable[[int], str]
) -> None:
    """Check index rows [N].

    Args:
        table: The rows.
        recipe: The cache's.
        shards: The names that the rows' shards must have.
        ends_N: How many bytes those shards have.
        place: Where a row stands, for a message.

    Raises:
        UserError: Naming the first clip with a number that cannot be true, and the number.
    """
    for name, what, wrong_N in _faults(table, recipe, shards, ends_N):
        if wrong_N.any():
            row = int(np.argmax(wrong_N))
            clip, value = table["clip_id"][row].as_py(), table[name][row].as_py()
            raise UserError(f"{place(row)}: clip {str(clip)[:CLIP_ID_DIGITS]}: {name} is {value!r}; {what}")


def check_unit(table: pa.Table, unit: int, recipe: Recipe, *, place: str) -> None:
    """Check one unit's index, as it was read; raises as `check_index`."""
    rows = table.num_rows
    shards, ends_N = pa.array([shard_name(unit)] * rows, pa.string()), np.full(rows, shard_nbytes(table.schema))
    check_index(table, recipe, shards=shards, ends_N=ends_N, place=lambda _: place)


def read_checked(cache: str, unit: int, recipe: Recipe) -> pa.Table:
    """Return a committed unit's index with all columns that say where arrays are; raises UserError as `check_unit`."""
    uri = storage.join(cache, "index", f"{unit_name(unit)}.parquet")
    schema = index_schema(recipe)
    later = [name for name in schema.names if name.endswith(FIDELITY) or name in ("doubt", "source_digest")]
    table = storage.read_parquet(uri, schema, optional=later)
    check_unit(table, unit, recipe, place=uri)
    return table


def shard_name(unit: int) -> str:
    return f"{unit_name(unit)}.tar"


def _faults(table: pa.Table, recipe: Recipe, shards: pa.Array, ends_N: Integers) -> Iterator[tuple[str, str, Booleans]]:
    """Yield column, what it must be, and which rows [N] are not.

    Widths and dtypes may be left out of the table: another width than the recipe's has another number of bytes, and
    nothing that is read goes by the dtype that stands there.
    """
    digits_N = np.asarray(pc.fill_null(pc.binary_length(table["clip_id"]), 0))
    yield "clip_id", f"it must have {CLIP_ID_DIGITS} digits", digits_N != CLIP_ID_DIGITS
    yield "shard", "it must be named as its index", ~np.asarray(pc.fill_null(pc.equal(table["shard"], shards), False))
    seconds_N = _numbers(table, "seconds")
    most = recipe.max_clip_seconds
    yield "seconds", f"it must be from 0 to {most:g}", ~((seconds_N > 0) & (seconds_N <= most))
    stored = STORED_TYPES[recipe.codec]
    for stream, about in recipe.streams.items():
        frames_N = _numbers(table, f"{stream}_frames")
        if f"{stream}_width" in table.schema.names:
            width_N = _numbers(table, f"{stream}_width")
            yield f"{stream}_width", f"the recipe says {about.width}", width_N != about.width
            dtypes = pc.fill_null(pc.equal(table[f"{stream}_dtype"], stored.dtype), False)
            yield f"{stream}_dtype", f"codec {recipe.codec} stores {stored.dtype}", ~np.asarray(dtypes)
        yield f"{stream}_frames", "a clip has one at least", ~(frames_N >= 1)
        values = {"": about.width * stored.value_nbytes * frames_N, "scale": about.width * SCALE_NBYTES + 0 * frames_N}
        for part in stored.parts:
            member = member_name(stream, part)
            nbytes_N, offset_N = (_numbers(table, f"{member}_{name}") for name in ("nbytes", "offset"))
            what = f"{stream}_frames and width make it {NPY_HEADER_NBYTES} more than their values"
            yield f"{member}_nbytes", what, nbytes_N != values[part] + NPY_HEADER_NBYTES
            inside_N = (offset_N >= TAR_BLOCK) & (offset_N + nbytes_N <= ends_N)
            yield f"{member}_offset", "the array must lie inside its shard", ~inside_N
            crc32_N = _numbers(table, f"{member}_crc32")
            yield f"{member}_crc32", "a checksum has 32 bits", ~((crc32_N >= 0) & (crc32_N < 2**32))


def _numbers(table: pa.Table, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a column as float64, NaN for null, so that no sum of wrong numbers can turn round."""
    numbers: np.ndarray[Any, np.dtype[np.float64]] = table[name].cast(pa.float64(), safe=False).to_numpy()
    return numbers
