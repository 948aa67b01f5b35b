"""A trial of a sweep, a run like any other, and what trials are ranked by."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.training.config import TrainConfig
from pipelines.training.monitoring.curves import scalars_of
from pipelines.training.sweep.space import shown

Mode = Literal["min", "max"]
WORST = 1e300
"""Score of a loss that is not finite: it can be ranked, and percentiles of it are numbers."""


@dataclass(frozen=True)
class Trial:
    """One variant: `config` is the sweep's with the `values` of the keys that are swept, in a run folder of its own."""

    number: int
    values: Mapping[str, Any]
    config: TrainConfig

    def __str__(self) -> str:
        return name_trial(self.number, self.values)


def name_trial(number: int, values: Mapping[str, Any]) -> str:
    """Return how messages name a trial."""
    return f"trial {number} ({', '.join(f'{key}={shown(value)}' for key, value in values.items())})"


@dataclass(frozen=True)
class Goal:
    """What trials are ranked by: a number of the lines of metrics, and whether the lowest or the highest is best."""

    metric: str
    mode: Mode

    def score(self, line: Mapping[str, Any]) -> float | None:
        """Return a line's score, None where it has none."""
        score = scalars_of(line).get(self.metric)
        if score is None or math.isfinite(score):
            return score
        return WORST if self.mode == "min" else -WORST

    def best(self, scores: Sequence[tuple[int, float]]) -> tuple[int, float] | None:
        """Return step and score of the best of some (step, score), the first of equals; None of none."""
        sign = 1 if self.mode == "min" else -1
        return min(scores, key=lambda scored: sign * scored[1], default=None)
