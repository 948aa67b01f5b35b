"""A run's metrics.jsonl: its lines, the alarms among them, and the curves that show the same."""

import json
import math
from dataclasses import asdict
from typing import Any

from pipelines import storage
from pipelines.alarms import Alarms
from pipelines.curves import Curves, TensorBoardCurves, WandbCurves, scalars_of
from pipelines.train_config import TrainConfig

METRICS = "metrics.jsonl"


class MetricsLog:
    """The lines of metrics.jsonl up to the step a run continues from, and alarms and curves that follow from them.

    The file is rewritten whole at every line.
    """

    def __init__(self, config: TrainConfig, tasks: list[str], *, first_step: int) -> None:
        self._uri = storage.join(config.run, METRICS)
        lines = read_metrics(config.run) if first_step else []
        self._lines = [line for line in lines if line["step"] <= first_step]
        self._alarms = Alarms(config.alarms, tasks)
        for line in self._lines:
            self._alarms.look(line)
        self._curves: list[Curves] = [TensorBoardCurves(config.run, first_step=first_step)]
        if config.wandb:
            self._curves.append(WandbCurves(config.run, project=config.wandb, config=asdict(config)))

    def append(self, line: dict[str, Any]) -> None:
        alarms = self._alarms.look(line)
        self._lines.append(line | ({"alarms": alarms} if alarms else {}))
        text = "".join(json.dumps(_without_nan(line), allow_nan=False) + "\n" for line in self._lines)
        storage.write_bytes(self._uri, text.encode())
        for curves in self._curves:
            curves.write(line["step"], scalars_of(line))

    def close(self) -> None:
        for curves in self._curves:
            curves.close()


def _without_nan(value: Any) -> Any:
    """Return numbers that are not finite as null, which JSON has no other word for."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(run: str) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics, NaN where a number was not finite; none if it has not written any."""
    uri = storage.join(run, METRICS)
    if not storage.file_exists(uri):
        return []
    lines = [json.loads(line) for line in storage.read_bytes(uri).decode().splitlines()]
    return [{key: math.nan if value is None else value for key, value in line.items()} for line in lines]
