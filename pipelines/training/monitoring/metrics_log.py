"""A run's metrics.jsonl: its lines, the alarms among them, and the curves that show the same."""

import json
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines import storage
from pipelines.runs.metrics import METRICS, read_metrics
from pipelines.training.alarms import Alarms
from pipelines.training.config import TrainConfig
from pipelines.training.monitoring.curves import UPLOAD_SECONDS, Curves, TensorBoardCurves, WandbCurves, scalars_of


class MetricsLog:
    """The lines of metrics.jsonl up to the step a run continues from, and alarms and curves that follow from them.

    A line is appended locally; elsewhere the file is uploaded whole, now and then.
    """

    def __init__(self, config: TrainConfig, tasks: list[str], *, first_step: int) -> None:
        self._uri = storage.join(config.run, METRICS)
        lines = [line for line in read_metrics(config.run) if line["step"] <= first_step]
        self._alarms = Alarms(config.alarms, tasks)
        for line in lines:
            self._alarms.look(line)
        self._text = "".join(map(_to_json, lines))
        storage.write_bytes(self._uri, self._text.encode())
        path = Path(storage.resolve(self._uri)[1])
        self._file = path.open("a") if storage.is_local(self._uri) else None
        self._flushed = time.monotonic()
        self._curves: list[Curves] = [TensorBoardCurves(config.run, first_step=first_step)]
        if config.wandb:
            self._curves.append(WandbCurves(config.run, project=config.wandb, config=asdict(config)))

    def append(self, line: dict[str, Any]) -> None:
        alarms = self._alarms.look(line)
        text = _to_json(line | ({"alarms": alarms} if alarms else {}))
        if self._file:
            self._file.write(text)
            self._file.flush()
        else:
            self._text += text
            if time.monotonic() - self._flushed > UPLOAD_SECONDS:
                self.flush()
        for curves in self._curves:
            curves.write(line["step"], scalars_of(line))

    def flush(self) -> None:
        """Let all lines be where they outlive this machine."""
        if self._file:
            os.fsync(self._file.fileno())
        else:
            storage.write_bytes(self._uri, self._text.encode())
        self._flushed = time.monotonic()

    def close(self) -> None:
        self.flush()
        if self._file:
            self._file.close()
        for curves in self._curves:
            curves.close()


def _to_json(line: dict[str, Any]) -> str:
    return json.dumps(_without_nan(line), allow_nan=False) + "\n"


def _without_nan(value: Any) -> Any:
    """Return numbers that are not finite as null, which JSON has no other word for."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
