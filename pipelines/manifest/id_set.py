"""Sets of 128-bit ids at 16 bytes each: ten million as Python objects would take a gigabyte. Letters: N ids."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import UserError
from pipelines.storage.arrays import Booleans, Ids

ID_NBYTES = 16
ID_TYPE = np.dtype(f"S{ID_NBYTES}")  # compares all bytes, as all are as long


def to_ids(names: pa.Array) -> Ids:
    """Return texts of 32 hex digits as an array [N] of 16 bytes each.

    Raises:
        UserError: If one is something else.
    """
    names = names.cast(pa.string())
    if names.null_count or not pc.all(pc.equal(pc.binary_length(names), 2 * ID_NBYTES), min_count=0).as_py():
        raise UserError(_not_ids(names))
    joined = pc.binary_join(pa.ListArray.from_arrays([0, len(names)], names), "")[0].as_py()
    try:
        data = bytes.fromhex(joined)
    except ValueError:
        raise UserError(_not_ids(names)) from None
    if len(data) != ID_NBYTES * len(names):  # fromhex passes over spaces
        raise UserError(_not_ids(names))
    return np.frombuffer(data, ID_TYPE)


def _not_ids(names: pa.Array) -> str:
    wrong = next(name for name in names.to_pylist() if not re.fullmatch(r"[0-9a-fA-F]{32}", name or ""))
    return f"id {wrong!r}: must be {2 * ID_NBYTES} hex digits"


class IdSet:
    """Ids as sorted runs, each more than twice as long as the next: an id is moved a few times, a look-up bisects."""

    def __init__(self) -> None:
        self._runs: list[Ids] = []

    def add(self, ids_N: Ids) -> Booleans:
        """Add ids and tell which [N] were not there before; of equal ones the first is new."""
        distinct, first = np.unique(ids_N, return_index=True)
        is_new = ~self.holds(distinct)
        if is_new.any():
            self._insert(distinct[is_new])
        is_new_N = np.zeros(len(ids_N), np.bool_)
        is_new_N[first[is_new]] = True
        return is_new_N

    def holds(self, ids_N: Ids) -> Booleans:
        """Tell which ids [N] are there."""
        order_N = np.argsort(ids_N)  # looked up in order, neighbours are near each other in memory: half the time
        ascending_N, is_there_N = ids_N[order_N], np.zeros(len(ids_N), np.bool_)
        for run in self._runs:
            places_N = np.minimum(np.searchsorted(run, ascending_N), len(run) - 1)
            is_there_N[order_N] |= run[places_N] == ascending_N
        return is_there_N

    def _insert(self, run: Ids) -> None:
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            run = np.concatenate([self._runs.pop(), run])
            run.sort(kind="stable")  # merges runs that are sorted already
        self._runs.append(run)
