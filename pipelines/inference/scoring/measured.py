"""A score as rows of numbers, one for each answer, whose sums give its value: what intervals and tests need."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def ratio(sums: Floats) -> Floats:
    """Return first sum / second sum [...] of sums [..., 2]; not a number where the second is 0."""
    quotient: Floats = np.full(sums.shape[:-1], np.nan)
    np.divide(sums[..., 0], sums[..., 1], out=quotient, where=sums[..., 1] != 0)
    return quotient


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A score before intervals.

    Args:
        name: As in the task table.
        rows: A row for each answer [answers, columns]; rows of zeros do not count.
        of_sums: Value [...] of the sums of rows [..., columns], not a number where there is none.
        signature: As in `Score`.
        items: How many answers count.
        notes: As in `Score`.
    """

    name: str
    rows: Floats
    of_sums: Callable[[Floats], Floats] = ratio
    signature: str
    items: int
    notes: tuple[str, ...] = ()


def mean(
    name: str, values: Floats, *, signature: str, counted: NDArray[np.bool_] | None = None, notes: tuple[str, ...] = ()
) -> Measured:
    """Return the mean of some answers' values [answers] as a score; `counted` says whose, all by default."""
    weights = np.ones(len(values)) if counted is None else counted.astype(np.float64)
    rows = np.stack([values * weights, weights], axis=1)
    return Measured(name=name, rows=rows, signature=signature, items=int(weights.sum()), notes=notes)


def unavailable(name: str, answers: int, *, signature: str, note: str) -> Measured:
    """Return a score that cannot be computed here, with the reason."""
    return Measured(name=name, rows=np.zeros((answers, 2)), signature=signature, items=0, notes=(note,))
