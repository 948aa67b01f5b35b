"""Intervals and tests by the bootstrap over clips: answers about one clip are drawn together."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
MOST_DRAWN = 10_000
"""More clips are drawn in this many groups: intervals stay as wide to a hundredth, and cost no more."""

Floats = NDArray[np.float64]


def sum_by_clip(rows: Floats, clip_ids: Sequence[str]) -> Floats:
    """Return the sums of the rows of each clip [clips, columns], clips in the order of their first rows."""
    number: dict[str, int] = {}
    clips = [number.setdefault(clip, len(number)) for clip in clip_ids]
    sums = np.zeros((len(number), rows.shape[1]))
    np.add.at(sums, clips, rows)
    return sums


def resample(sums: Floats, *, resamples: int, seed: int) -> Floats:
    """Return the sums over clips drawn with replacement, as many as there are [resamples, columns]."""
    if len(sums) > MOST_DRAWN:
        sums = _grouped(sums)
    clips, generator = len(sums), np.random.default_rng(seed)
    drawn = np.empty((resamples, sums.shape[1]))
    for one in drawn:
        one[:] = np.bincount(generator.integers(clips, size=clips), minlength=clips) @ sums
    return drawn


def _grouped(sums: Floats) -> Floats:
    grouped = np.zeros((MOST_DRAWN, sums.shape[1]))
    np.add.at(grouped, np.arange(len(sums)) % MOST_DRAWN, sums)
    return grouped


def interval(values: Floats) -> tuple[float | None, float | None]:
    """Return where the middle 95 % of the resampled values begin and end; None where a score does not exist."""
    values = values[~np.isnan(values)]
    if not len(values):
        return None, None
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def p_value(differences: Floats) -> float:
    """Return how often chance makes a difference of either sign, two-sided and never 0: resamples are not endless."""
    differences = np.round(differences, 12)  # equal answers differ by what matrix products round
    tail = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (len(differences) + 1))
