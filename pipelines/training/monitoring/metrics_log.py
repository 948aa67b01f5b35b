"""A run's metrics.jsonl: its lines, the alarms among them, and the curves that show the same."""

import socket
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from pipelines import storage
from pipelines.runs.metrics import METRICS, read_metrics
from pipelines.training.alarms import Alarms
from pipelines.training.config import TrainConfig
from pipelines.training.monitoring.curves import Curves, TensorBoardCurves, WandbCurves, scalars_of


class MetricsLog:
    """The lines of metrics.jsonl up to the step a run continues from, and alarms and curves that follow from them."""

    def __init__(self, config: TrainConfig, tasks: list[str], *, first_step: int) -> None:
        lines = [line for line in read_metrics(config.run) if line["step"] <= first_step]
        self._alarms = Alarms(config.alarms, tasks)
        for line in lines:
            self._alarms.look(line)
        self._file = storage.LineFile(storage.join(config.run, METRICS), lines)
        self._curves: list[Curves] = [TensorBoardCurves(config.run, first_step=first_step)]
        if config.wandb:
            self._curves.append(WandbCurves(config.run, project=config.wandb, config=asdict(config)))

    def append(self, line: dict[str, Any]) -> None:
        """Add a line, and where and when it was written, and what alarms ring at it."""
        alarms = self._alarms.look(line)
        written = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "node": socket.gethostname()}
        self._file.append(line | written | ({"alarms": alarms} if alarms else {}))
        for curves in self._curves:
            curves.write(line["step"], scalars_of(line))

    def flush(self) -> None:
        """Let all lines be where they outlive this machine."""
        self._file.flush()

    def close(self) -> None:
        self._file.close()
        for curves in self._curves:
            curves.close()
