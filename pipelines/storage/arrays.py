"""Names for NumPy arrays of one dtype."""

from typing import Any

import numpy as np

Ids = np.ndarray[Any, np.dtype[np.bytes_]]
Booleans = np.ndarray[Any, np.dtype[np.bool_]]


Integers = np.ndarray[Any, np.dtype[np.int64]]
Keys = np.ndarray[Any, np.dtype[np.uint64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


Indices = np.ndarray[Any, np.dtype[np.int64]]
