"""Trials on Ray Tune's actors: side by side, stopped early by ASHA, shown in one line."""

import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.exceptions import RayError
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler

from cluster.unit_queue import describe_error
from pipelines.config import require_range
from pipelines.progress import Phase
from pipelines.sweep_results import TrialResult, mark_stopped
from pipelines.sweep_trial import Goal, Trial, TrialActor

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # no tables; with verbose=0 nothing else either
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no result files of Tune's own
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # lines between two validations have no score
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the sweep, as it ends everything else
}

NO_CONTROLLER: Any = None
"""ASHA does not look at it."""


@dataclass(frozen=True)
class StopEarlyConfig:
    """Tune's ASHA: trials are compared with those that came as far before them."""

    grace_steps: int = 0
    """[steps] Where trials are compared first, then at each `reduction` times as many; 0: none is stopped early."""
    reduction: float = 4.0
    """[factor] A trial goes on if it is among the best 1/reduction of those that came so far before it, itself among
    them."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require_range(self, ("grace_steps",), low=0)
        if not self.reduction > 1:
            raise ValueError(f"reduction={self.reduction}: must be above 1")


class ContinuedAsha(ASHAScheduler):
    """ASHA that knows what trials came to before this call, and does not judge that again."""

    def __init__(
        self, config: StopEarlyConfig, goal: Goal, results: Sequence[TrialResult], *, ended: Sequence[TrialResult]
    ) -> None:
        """Take what there is of all trials, and of those that will not go on."""
        super().__init__(
            time_attr="step",
            metric="score",
            mode=goal.mode,
            max_t=max(result.steps for result in results),
            grace_period=config.grace_steps,
            reduction_factor=config.reduction,
            stop_last_trials=False,
        )
        self._before = {result.number: result.scores for result in results}
        for result in ended:
            stand_in = TuneTrial(TrialActor.__name__, stub=True)
            super().on_trial_add(NO_CONTROLLER, stand_in)
            self._replay(stand_in, result.number)

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        super().on_trial_add(tune_controller, trial)
        self._replay(trial, trial.config["number"])

    def _replay(self, trial: TuneTrial, number: int) -> None:
        for step, score in self._before[number]:
            super().on_trial_result(NO_CONTROLLER, trial, {"step": step, "score": score})


class Watch(tune.Callback):
    """Follows the trials in the driver: shows them, records which were stopped early and why others failed."""

    def __init__(self, trials: Sequence[Trial], results: Sequence[TrialResult], goal: Goal, phase: Phase) -> None:
        self._trials, self._goal, self._phase = {trial.number: trial for trial in trials}, goal, phase
        self._steps = {result.number: result.steps if result.has_ended else result.step for result in results}
        self._scores = [(result.number, result.score) for result in results if result.score is not None]
        self._done = {result.number for result in results if result.has_ended}
        self._stopped = {result.number for result in results if result.ending == "stopped early"}
        self._running: set[int] = set()
        self.failures: dict[int, str] = {}
        self._show()

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._running.add(trial.config["number"])
        self._show()

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        number = trial.config["number"]
        if "failed" in result:
            self.failures[number] = result["failed"]
            return
        self._steps[number] = result["step"]
        if "score" in result:
            self._scores.append((number, result["score"]))
        self._show()

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        number, last = trial.config["number"], trial.last_result
        ours = self._trials[number]
        self._running.discard(number)
        if number not in self.failures:
            self._done.add(number)
            if last["step"] < ours.config.steps:
                mark_stopped(ours, self._goal, step=last["step"], score=last["score"])
                self._stopped.add(number)
        self._steps[number] = ours.config.steps
        self._show()

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        number = trial.config["number"]
        self._running.discard(number)
        self._steps[number] = self._trials[number].config.steps
        self.failures[number] = "its process failed"
        self._show()

    def _show(self) -> None:
        early = f", {len(self._stopped)} of them early" if self._stopped else ""
        words = [f"{len(self._done)} of {len(self._trials)} trials done{early}", f"{len(self._running)} running"]
        words += [f"{len(self.failures)} failed"] if self.failures else []
        if best := self._goal.best(self._scores):
            words.append(f"best {self._goal.metric} {best[1]:.4f} (trial {best[0]})")
        self._phase.update(sum(self._steps.values()), note=", ".join(words))


def run_trials(
    trials: Sequence[Trial],
    results: Sequence[TrialResult],
    *,
    goal: Goal,
    stop_early: StopEarlyConfig,
    resources: dict[str, float],
    max_failures: int,
    phase: Phase,
) -> dict[int, str]:
    """Train the trials that have not ended, as many side by side as there is room for; return why some failed.

    Args:
        trials: All of the sweep.
        results: What each of them came to so far.
        goal: What they are ranked by.
        stop_early: When to stop which.
        resources: CPU and GPU of a trial.
        max_failures: Times that a trial is started again after it lost its process or met what may pass.
        phase: Counts steps; those that a trial is spared count as done.
    """
    os.environ.update(QUIET)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it tells of failures, which are told in the end
    ended = [result for result in results if result.has_ended]
    todo = [result.number for result in results if not result.has_ended]
    watch = Watch(trials, results, goal, phase)
    actor = tune.with_parameters(TrialActor, trials=list(trials), goal=goal)
    with tempfile.TemporaryDirectory(prefix="salmonn-") as folder:  # for Tune's records; ours are the run folders
        outcomes = tune.Tuner(
            tune.with_resources(actor, resources),
            param_space={"number": tune.grid_search(todo)},
            tune_config=tune.TuneConfig(
                scheduler=ContinuedAsha(stop_early, goal, results, ended=ended) if stop_early.grace_steps else None,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: str(trial.config["number"]),
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=folder,
                callbacks=[watch],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=max_failures),
                verbose=0,
            ),
        ).fit()
        failed = {int(Path(outcomes[place].path).name): outcomes[place].error for place in range(len(outcomes))}
    reasons = {number: describe_error(error) for number, error in failed.items() if isinstance(error, RayError)}
    return watch.failures | reasons
