"""What jobs tell Prometheus, all of it: the metrics, and the functions by which the drivers of jobs set them.

Drivers do it, not workers: they hear of everything that counts, once, when it is committed, and a worker that is killed
takes nothing along. Alerts and dashboard use these names (`cluster/deploy/monitoring.py`, `dashboard.py`).
"""

from collections import Counter as Counts
from collections.abc import Iterable, Mapping
from typing import Any

from cluster.metrics import Counter, Gauge

EXTRACT_UNITS = Gauge(
    "salmonn_extract_units", "Shards of the plan: queued, running, done (committed), failed", ("cache", "state")
)
EXTRACT_RETRIES = Gauge("salmonn_extract_retries", "Shards that this job tried once more", ("cache",))
EXTRACT_WORKER_DEATHS = Gauge("salmonn_extract_worker_deaths", "Workers that this job lost", ("cache",))
EXTRACT_CLIPS = Counter("salmonn_extract_clips", "Clips in the shards that were committed", ("cache", "node"))
EXTRACT_AUDIO = Counter("salmonn_extract_audio_seconds", "Seconds of audio in them", ("cache", "node"))
EXTRACT_BYTES = Counter("salmonn_extract_bytes", "Bytes of them", ("cache", "node"))
EXTRACT_SECONDS = Counter(
    "salmonn_extract_part_seconds", "Seconds of workers by part: waits for decode and encode, write", ("cache", "part")
)
EXTRACT_REJECTS = Counter("salmonn_extract_rejects", "Clips that were rejected, by stage", ("cache", "reason"))

TRAIN_STEP = Gauge("salmonn_train_step", "The newest step with a line of metrics", ("run",))
TRAIN_STEPS = Gauge("salmonn_train_planned_steps", "The step at which the run ends", ("run",))
TRAIN_LOSS = Gauge("salmonn_train_loss", "Loss in nats per target token", ("run",))
TRAIN_TASK_LOSS = Gauge("salmonn_train_task_loss", "The same, of each task", ("run", "task"))
TRAIN_VALID_LOSS = Gauge("salmonn_train_valid_loss", "The newest held-out loss", ("run",))
TRAIN_SPEED = Gauge("salmonn_train_examples_per_second", "Examples that are learnt in a second", ("run",))
TRAIN_WAIT = Gauge("salmonn_train_data_wait_fraction", "Share of the time that waits for data", ("run",))
TRAIN_SKIPPED = Gauge("salmonn_train_skipped_steps", "Steps so far without finite loss and gradient", ("run",))
TRAIN_ALARMS = Gauge("salmonn_train_alarms", "Times so far that an alarm of the run began to ring", ("run", "alarm"))

ANSWER_PENDING = Gauge("salmonn_answer_pending", "Questions that are not answered yet", ("run",))
ANSWER_RETRIES = Gauge("salmonn_answer_retries", "Units of questions that this job tried once more", ("run",))
ANSWERS = Counter("salmonn_answers", "Answers that were kept", ("run", "node"))
ANSWER_TOKENS = Counter("salmonn_answer_tokens", "Tokens of the answers that were kept", ("run", "node"))

METRICS = tuple(value for value in list(globals().values()) if isinstance(value, Counter | Gauge))
KNOWN_ALARMS = ("spike", "divergence", "plateau", "data wait")
"""Alarms that have a series from the beginning, so that the first ring is a rise."""


def unit_extracted(
    cache: str,
    *,
    node: str,
    clips: int,
    audio_seconds: float,
    nbytes: int,
    parts: Mapping[str, float],
    rejects: Mapping[str, int],
) -> None:
    """Count a shard that was committed; `parts` are seconds, `rejects` clips by stage."""
    cache = _named(cache)
    EXTRACT_CLIPS.add(clips, cache=cache, node=node)
    EXTRACT_AUDIO.add(audio_seconds, cache=cache, node=node)
    EXTRACT_BYTES.add(nbytes, cache=cache, node=node)
    for part, seconds in parts.items():
        EXTRACT_SECONDS.add(seconds, cache=cache, part=part)
    for reason, count in rejects.items():
        EXTRACT_REJECTS.add(count, cache=cache, reason=reason)


def extraction_stands(cache: str, units: Mapping[str, int], *, retries: int, worker_deaths: int) -> None:
    """Say how many shards are in which state."""
    cache = _named(cache)
    for state, count in units.items():
        EXTRACT_UNITS.set(count, cache=cache, state=state)
    EXTRACT_RETRIES.set(retries, cache=cache)
    EXTRACT_WORKER_DEATHS.set(worker_deaths, cache=cache)


class RunStands:
    """Where a run stands, by its lines of metrics."""

    def __init__(self, run: str, planned_steps: int) -> None:
        self._run, self._planned = _named(run), planned_steps
        self._begin()

    def _begin(self) -> None:
        self._newest: Mapping[str, Any] = {"step": 0}
        self._valid_loss = float("nan")
        self._skipped = 0
        self._alarms = Counts(dict.fromkeys(KNOWN_ALARMS, 0))

    @property
    def is_complete(self) -> bool:
        return bool(self._newest["step"] >= self._planned)

    def take(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Take the lines that have come, as `MetricsTail` reads them: all of them where the run went back."""
        for line in lines:
            if line["step"] <= self._newest["step"]:
                self._begin()
            self._newest = line
            self._valid_loss = line.get("valid_loss", self._valid_loss)
            self._skipped += line["skipped_steps"]
            self._alarms.update(alarm.partition(":")[0] for alarm in line.get("alarms", ()))

    def tell(self) -> None:
        """Set the metrics to it."""
        run, line = self._run, self._newest
        TRAIN_STEP.set(line["step"], run=run)
        TRAIN_STEPS.set(self._planned, run=run)
        TRAIN_SKIPPED.set(self._skipped, run=run)
        TRAIN_VALID_LOSS.set(self._valid_loss, run=run)
        for alarm, count in self._alarms.items():
            TRAIN_ALARMS.set(count, run=run, alarm=alarm)
        for task, loss in line.get("loss_by_task", {}).items():
            TRAIN_TASK_LOSS.set(loss, run=run, task=task)
        if line["step"]:
            TRAIN_LOSS.set(line["loss"], run=run)
            TRAIN_SPEED.set(line["examples_per_second"], run=run)
            TRAIN_WAIT.set(line["data_wait_fraction"], run=run)


def unit_answered(run: str, *, node: str, answers: int, tokens: int) -> None:
    """Count a unit of questions whose answers are kept."""
    run = _named(run)
    ANSWERS.add(answers, run=run, node=node)
    ANSWER_TOKENS.add(tokens, run=run, node=node)


def answering_stands(run: str, *, pending: int, retries: int) -> None:
    """Say how many questions are left."""
    ANSWER_PENDING.set(pending, run=_named(run))
    ANSWER_RETRIES.set(retries, run=_named(run))


def _named(uri: str) -> str:
    """Return a folder without the options in its URI."""
    return uri.partition("?")[0]
