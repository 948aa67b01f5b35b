"""A run's metrics where curves are looked at: TensorBoard's event files in the run, Weights & Biases if asked."""

import hashlib
import importlib
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from pipelines import storage

UPLOAD_SECONDS = 30.0
"""Time between uploads of an event file; TensorBoard looks for news as often."""


class Curves(Protocol):
    """Takes numbers by name, step after step."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def scalars_of(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line of metrics; a task's are named `loss_by_task/asr`."""
    found: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, dict):
            found |= {f"{name}/{task}": number for task, number in value.items()}
        elif isinstance(value, int | float) and name != "step":
            found[name] = value
    return found


class TensorBoardCurves:
    """An event file per launch in <run>/tensorboard; it grows in place locally and is uploaded now and then elsewhere.

    A run that continues tells TensorBoard to forget what came after the checkpoint.
    """

    def __init__(self, run: str, *, first_step: int) -> None:
        """Begin a file for the steps after `first_step`."""
        # Half a second that only the first worker needs. Not SummaryWriter: its flush returns before the event is
        # in the file, and an upload would lack it.
        from tensorboardX.event_file_writer import EventsWriter  # type: ignore[import-untyped]
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
        from tensorboardX.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

        self._event, self._summary = Event, Summary
        self._target = storage.join(run, "tensorboard")
        self._is_local = storage.is_local(run)
        self._staging = tempfile.TemporaryDirectory(prefix="salmonn-")
        self._folder = Path(storage.resolve(self._target)[1] if self._is_local else self._staging.name)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(self._folder / "events"))
        self._write(first_step + 1, session_log=SessionLog(status=SessionLog.START))
        self._uploaded = time.monotonic()

    def _write(self, step: int, **content: Any) -> None:
        self._file.write_event(self._event(wall_time=time.time(), step=step, **content))
        self._file.flush()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._write(step, summary=self._summary(value=values))
        if time.monotonic() - self._uploaded > UPLOAD_SECONDS:
            self._upload()

    def _upload(self) -> None:
        if not self._is_local:
            for path in self._folder.iterdir():
                storage.write_bytes(storage.join(self._target, path.name), path.read_bytes())
        self._uploaded = time.monotonic()

    def close(self) -> None:
        self._file.close()
        self._upload()
        self._staging.cleanup()


class WandbCurves:
    """The run on Weights & Biases, continued there when it continues here."""

    def __init__(self, run: str, *, project: str, config: Mapping[str, Any]) -> None:
        """Begin or continue the run; its id comes from the folder."""
        wandb = importlib.import_module("wandb")  # not a dependency
        self._run = wandb.init(
            project=project,
            name=run.partition("?")[0].rpartition("/")[2],
            id=hashlib.sha256(run.encode()).hexdigest()[:16],
            resume="allow",
            config=dict(config),
        )

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        self._run.finish()
