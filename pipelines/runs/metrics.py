"""A run's metrics.jsonl, read whole or as it grows."""

import json
import math
import os
from typing import Any, BinaryIO

from pipelines import storage
from pipelines.errors import UserError

METRICS = "metrics.jsonl"
WAIT, COMPUTE, SUM, UPDATE = STEP_PARTS = ("data_wait", "forward_and_backward", "sum_over_workers", "optimizer_step")
"""Parts of a step; the sum over workers includes the wait for the slowest of them."""
VALIDATION, CHECKPOINT = "validation", "checkpoint"
"""What is done between steps, and not counted as theirs."""


def _with_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_nan(inner) for key, inner in value.items()}
    return math.nan if value is None else value


class MetricsTail:
    """Reads the lines of a run's metrics as they come."""

    def __init__(self, run: str) -> None:
        self._uri, self._position = storage.join(run, METRICS), 0

    def read(self) -> list[dict[str, Any]]:
        """Return the lines since the last call, NaN where a number was not finite; all if the file began anew.

        A line that is only half there comes when it is whole.
        """
        if not storage.file_exists(self._uri):
            return []
        with storage.open_file(self._uri) as file:
            start = self._position - 1
            if not 0 <= start < file.seek(0, os.SEEK_END) or not _is_line_end(file, start):
                start = -1
            file.seek(start + 1)
            text, newline, _ = file.read().rpartition(b"\n")
        self._position = start + 1 + len(text + newline)
        try:
            return [_with_nan(json.loads(line)) for line in text.splitlines()]
        except ValueError as error:
            raise UserError(f"{self._uri}: damaged, not a JSON object a line ({error})") from None


def _is_line_end(file: BinaryIO, position: int) -> bool:
    file.seek(position)
    return file.read(1) == b"\n"


def read_metrics(run: str) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics, NaN where a number was not finite; none if it has not written any."""
    return MetricsTail(run).read()
