"""A run's metrics.jsonl, read whole or as it grows."""

import math
from typing import Any

from pipelines import storage
from pipelines.errors import UserError

METRICS = "metrics.jsonl"
WAIT, COMPUTE, SUM, UPDATE = STEP_PARTS = ("data_wait", "forward_and_backward", "sum_over_workers", "optimizer_step")
"""Parts of a step; the sum over workers includes the wait for the slowest of them."""
VALIDATION, CHECKPOINT = "validation", "checkpoint"
"""What is done between steps, and not counted as theirs."""

_NUMBER = int | float
IN_EVERY_LINE: dict[str, Any] = {
    **{"step": int, "skipped_steps": int, "loss_by_task": dict, "examples_by_task": dict, "seconds_by_part": dict},
    **dict.fromkeys(("loss", "token_accuracy", "examples_per_second", "audio_hours_per_second"), _NUMBER),
    **dict.fromkeys(("data_wait_fraction", "megabytes_per_second", "peak_memory_mb"), _NUMBER),
}


class MetricsTail(storage.LineTail):
    """Reads the lines of a run's metrics as they come."""

    def __init__(self, run: str) -> None:
        super().__init__(storage.join(run, METRICS))

    def read(self) -> list[dict[str, Any]]:
        """Return the lines since the last call, NaN where a number was not finite. Otherwise as `LineTail.read`."""
        lines = [_with_nan(line) for line in super().read()]
        for line in lines:
            self._require_numbers(line)
        return lines

    def _require_numbers(self, line: Any) -> None:
        """Refuse a line without the numbers that all lines have, and every reader takes."""
        if not isinstance(line, dict):
            raise UserError(f"{self._uri}: damaged, not a JSON object a line")
        for name, kind in IN_EVERY_LINE.items():
            found = line.get(name)
            if not isinstance(found, kind):
                raise UserError(f"{self._uri}: damaged, {name} is {found!r} in a line")
            for part, number in found.items() if isinstance(found, dict) else ():
                if not isinstance(number, _NUMBER):
                    raise UserError(f"{self._uri}: damaged, {name} of {part} is {number!r} in a line")


def _with_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_nan(inner) for key, inner in value.items()}
    return math.nan if value is None else value


def read_metrics(run: str) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics, NaN where a number was not finite; none if it has not written any."""
    return MetricsTail(run).read()
