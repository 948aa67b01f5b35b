"""What the trials of a sweep came to, read from their run folders alone."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipelines import storage
from pipelines.runs.folder import complete_steps
from pipelines.runs.metrics import read_metrics
from pipelines.training.sweep.space import shown
from pipelines.training.sweep.trial import WORST, Goal, Trial

STOPPED = "stopped.json"
"""In the run folder of a trial that was stopped early; such a trial has ended."""

Ending = Literal["complete", "stopped early", "failed", "unfinished"]


@dataclass(frozen=True)
class TrialResult:
    """How far a trial is and how good; `score` and `best_step` are its best line's."""

    number: int
    run: str
    values: dict[str, Any]
    score: float | None
    best_step: int | None
    step: int
    steps: int
    training_seconds: float
    ending: Ending
    reason: str
    """Why it failed."""
    scores: list[tuple[int, float]]
    """[(step, score)] Of all its lines that have one."""

    @property
    def has_ended(self) -> bool:
        return self.ending in ("complete", "stopped early")


def read_result(trial: Trial, goal: Goal, reason: str = "") -> TrialResult:
    """Read what a trial came to; `reason` says why it failed just now."""
    run, steps = trial.config.run, trial.config.steps
    checkpoints, lines = complete_steps(run), read_metrics(run)
    ending: Ending = "failed" if reason else "unfinished"
    if checkpoints[-1:] == [steps]:
        ending = "complete"
    elif storage.file_exists(storage.join(run, STOPPED)):
        ending = "stopped early"
    elif not reason:  # lines after the newest checkpoint come again when the trial goes on
        lines = [line for line in lines if checkpoints and line["step"] <= checkpoints[-1]]
    scores = [(line["step"], score) for line in lines if (score := goal.score(line)) is not None]
    best = goal.best(scores)
    return TrialResult(
        number=trial.number,
        run=run,
        values=dict(trial.values),
        score=best[1] if best else None,
        best_step=best[0] if best else None,
        step=lines[-1]["step"] if lines else 0,
        steps=steps,
        training_seconds=sum(sum(line["examples_by_task"].values()) / line["examples_per_second"] for line in lines),
        ending=ending,
        reason=reason if ending == "failed" else "",
        scores=scores,
    )


def mark_stopped(trial: Trial, goal: Goal, *, step: int, score: float) -> None:
    """Record that a trial was stopped early and shall not be continued."""
    record = {"step": step, "metric": goal.metric, "score": score}
    storage.write_bytes(storage.join(trial.config.run, STOPPED), json.dumps(record).encode())


def ranked(results: Sequence[TrialResult], goal: Goal) -> list[TrialResult]:
    """Return the results, the best first, those without a score last."""
    sign = 1 if goal.mode == "min" else -1
    return sorted(results, key=lambda result: (result.score is None, sign * (result.score or 0.0), result.number))


def swept_keys(results: Sequence[TrialResult]) -> list[str]:
    return sorted({key for result in results for key in result.values})


def columns_of(results: Sequence[TrialResult], goal: Goal) -> list[str]:
    return ["trial", *swept_keys(results), goal.metric, "at step", "steps", "training s", "ending"]


def cells_of(result: TrialResult, keys: Sequence[str]) -> list[str]:
    """Return the row of a table under `columns_of`."""
    return [
        str(result.number),
        *(shown(result.values[key]) for key in keys),
        shown_score(result.score),
        "" if result.best_step is None else str(result.best_step),
        f"{result.step}/{result.steps}",
        f"{result.training_seconds:.1f}",
        f"{result.ending}: {result.reason}" if result.reason else result.ending,
    ]


def shown_score(score: float | None) -> str:
    if score is None:
        return ""
    return f"{score:.4f}" if abs(score) < WORST else "not finite"


def as_json(results: Sequence[TrialResult], goal: Goal) -> bytes:
    """Return the rows of the table as JSON, the best trial first."""
    rows = [{name: value for name, value in asdict(result).items() if name != "scores"} for result in results]
    return json.dumps({"metric": goal.metric, "mode": goal.mode, "trials": rows}, indent=2).encode()
