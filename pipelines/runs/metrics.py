"""A run's metrics.jsonl, read whole or as it grows."""

import math
from typing import Any

from pipelines import storage

METRICS = "metrics.jsonl"
WAIT, COMPUTE, SUM, UPDATE = STEP_PARTS = ("data_wait", "forward_and_backward", "sum_over_workers", "optimizer_step")
"""Parts of a step; the sum over workers includes the wait for the slowest of them."""
VALIDATION, CHECKPOINT = "validation", "checkpoint"
"""What is done between steps, and not counted as theirs."""


class MetricsTail(storage.LineTail):
    """Reads the lines of a run's metrics as they come."""

    def __init__(self, run: str) -> None:
        super().__init__(storage.join(run, METRICS))

    def read(self) -> list[dict[str, Any]]:
        """Return the lines since the last call, NaN where a number was not finite. Otherwise as `LineTail.read`."""
        return [_with_nan(line) for line in super().read()]


def _with_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_nan(inner) for key, inner in value.items()}
    return math.nan if value is None else value


def read_metrics(run: str) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics, NaN where a number was not finite; none if it has not written any."""
    return MetricsTail(run).read()
