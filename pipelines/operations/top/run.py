"""How a run stands, the job that trains it, and the one that answers for it."""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines import storage
from pipelines.inference.answers import FOLDER, JOBS
from pipelines.operations.top.job_lines import JobLines, Line, seconds_of
from pipelines.runs.metrics import MetricsTail
from pipelines.runs.summary import read_config

LAST_ALARMS = 3


@dataclass(frozen=True, kw_only=True)
class RunLook:
    """What was seen at one time."""

    holders: list[storage.Holder]
    steps: int | None
    """None of a run that was imported."""
    line: Line
    """The newest line of metrics; empty where there is none."""
    valid_loss: float | None
    skipped: int
    alarms: list[str]
    """The last ones."""
    seconds_left: float | None
    """None where that is not known, or nobody is at work."""
    answer_holders: list[storage.Holder]
    answers: int
    answers_per_second: float
    recent_seconds: float
    """Past over which that is told."""
    newest_answers: float | None
    """[seconds since 1970] When the newest job's last answers came."""
    failed: int
    """Units of questions that the newest job gave up."""

    @property
    def newest(self) -> float | None:
        """Return when the newest line was written, in seconds since 1970; None where it does not say so."""
        return seconds_of(self.line["time"]) if "time" in self.line else None


class RunWatch:
    """Looks at a run again and again, and reads each time what is new."""

    def __init__(self, run: str) -> None:
        """Begin before the first line. Raises MissingError if there is no run."""
        read_config(run)
        self.uri = run
        self._tail = MetricsTail(run)
        self._lines = JobLines(storage.join(run, FOLDER, JOBS))
        self._answers: dict[str, int] = {}
        self._begin()

    def _begin(self) -> None:
        self._line: Line = {}
        self._valid_loss: float | None = None
        self._skipped = 0
        self._alarms: deque[str] = deque(maxlen=LAST_ALARMS)

    def look(self, now: float) -> RunLook:
        """Return how the run stands; `now` is the time in seconds since 1970."""
        self._take()
        config, holders = read_config(self.uri), storage.held_by(self.uri)
        recent, span = self._lines.read(now), self._lines.span(now)
        return RunLook(
            holders=holders,
            steps=config.get("steps"),
            line=self._line,
            valid_loss=self._valid_loss,
            skipped=self._skipped,
            alarms=list(self._alarms),
            seconds_left=None if all(holder.is_gone for holder in holders) else self._seconds_left(config),
            answer_holders=storage.held_by(storage.join(self.uri, FOLDER)),
            answers=self._count_answers(),
            answers_per_second=sum(line["answers"] for line in recent) / span,
            recent_seconds=span,
            newest_answers=self._lines.newest,
            failed=self._lines.failed,
        )

    def _take(self) -> None:
        """Take the lines of metrics that have come: all of them where the run went back to a checkpoint."""
        for line in self._tail.read():
            if line["step"] <= self._line.get("step", 0):
                self._begin()
            self._line = line
            self._valid_loss = line.get("valid_loss", self._valid_loss)
            self._skipped += line["skipped_steps"]
            self._alarms.extend(f"step {line['step']}: {alarm}" for alarm in line.get("alarms", ()))

    def _seconds_left(self, config: Mapping[str, Any]) -> float | None:
        speed = self._line.get("examples_per_second", math.nan)
        left = (config.get("steps", 0) - self._line.get("step", 0)) * config.get("batch_examples", 0)
        return left / speed if left > 0 and speed > 0 else None

    def _count_answers(self) -> int:
        """Return how many answers are stored; a file of them never changes and is looked at once."""
        folder = storage.join(self.uri, FOLDER)
        for store in storage.list_folders(folder):
            for name in storage.list_names(storage.join(folder, store), ".parquet"):
                place = f"{store}/{name}"
                if place not in self._answers:
                    with storage.open_parquet(storage.join(folder, place)) as file:
                        self._answers[place] = file.metadata.num_rows
        return sum(self._answers.values())
