"""Names for NumPy arrays of one dtype."""

from typing import Any

import numpy as np
import pyarrow as pa

Ids = np.ndarray[Any, np.dtype[np.bytes_]]
Booleans = np.ndarray[Any, np.dtype[np.bool_]]


Integers = np.ndarray[Any, np.dtype[np.int64]]
Keys = np.ndarray[Any, np.dtype[np.uint64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


Indices = np.ndarray[Any, np.dtype[np.int64]]


def numbers(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """Return a column without nulls that is in one chunk as an array over the same memory, not to be written to."""
    chunks = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    values: np.ndarray[Any, Any] = np.from_dlpack(chunks)
    return values
