"""Trials on Ray Tune's actors: side by side, stopped early by ASHA, shown in one line."""

import logging
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayActorError, RayError
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler

from cluster.apart import call_in_thread
from cluster.failures import describe_error
from pipelines.interface.progress import Phase
from pipelines.training.sweep.actor import TrialActor
from pipelines.training.sweep.config import StopEarlyConfig
from pipelines.training.sweep.results import Ending, TrialResult, mark_stopped, read_result
from pipelines.training.sweep.trial import Goal, Trial

STOP_SECONDS = 10.0
"""Longest wait for Tune to stop: it looks up several times a second, on a busy machine less often."""
QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # no tables; with verbose=0 nothing else either
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no result files of Tune's own
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # lines between two validations have no score
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the sweep, as it ends everything else
}

NO_CONTROLLER: Any = None
"""ASHA does not look at it."""


class ContinuedAsha(ASHAScheduler):
    """ASHA that knows what trials came to before this call, and does not judge that again."""

    def __init__(self, config: StopEarlyConfig, goal: Goal, results: Sequence[TrialResult]) -> None:
        """Take what all trials came to so far."""
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
        for result in results:
            if result.ending == "unfinished":
                continue
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
        """Begin where the results are."""
        self._trials, self._goal, self._phase = {trial.number: trial for trial in trials}, goal, phase
        self._steps = {result.number: result.step for result in results}
        self._scores = [(result.number, result.score) for result in results if result.score is not None]
        self._endings: dict[int, Ending] = {
            result.number: result.ending for result in results if result.ending != "unfinished"
        }
        self._running: set[int] = set()
        self.failures: dict[int, str] = {}
        self._show()

    def __getstate__(self) -> dict[str, Any]:
        """Give Tune nothing to keep for a restoration, which is not its business here; a live display has locks."""
        return {}

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
        if number in self.failures:
            self._end(number, "failed")
        elif last["step"] == self._trials[number].config.steps:
            self._end(number, "complete")
        else:
            mark_stopped(self._trials[number], self._goal, step=last["step"], score=last["score"])
            self._end(number, "stopped early")

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._end(trial.config["number"], "failed")

    def _end(self, number: int, ending: Ending) -> None:
        self._running.discard(number)
        self._endings[number] = ending
        self._show()

    def _show(self) -> None:
        endings = Counter(self._endings.values())
        early = f", {endings['stopped early']} of them early" if endings["stopped early"] else ""
        done = f"{endings['complete'] + endings['stopped early']} of {len(self._trials)} trials done{early}"
        is_starting = not self._running and len(self._endings) < len(self._trials)
        words = [done, "processes start" if is_starting else f"{len(self._running)} running"]
        words += [f"{endings['failed']} failed"] if endings["failed"] else []
        if best := self._goal.best(self._scores):
            words.append(f"best {self._goal.metric} {best[1]:.4f} (trial {best[0]})")
        steps = {number: trial.config.steps for number, trial in self._trials.items() if number in self._endings}
        self._phase.update(sum((self._steps | steps).values()), note=", ".join(words))


def run_trials(
    trials: Sequence[Trial],
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
        goal: What they are ranked by.
        stop_early: When to stop which.
        resources: CPU and GPU of a trial.
        max_failures: Times that trials whose process or machine was lost are taken up again, after all others.
        phase: Counts steps; steps that a trial is spared count as done.
    """
    os.environ.update(QUIET)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it prints failures, which the sweep prints at its end
    failures: dict[int, str] = {}
    lost: dict[int, str] = {}
    for _ in range(1 + max_failures):
        results = [read_result(trial, goal, failures.get(trial.number, "")) for trial in trials]
        if all(result.ending != "unfinished" for result in results):
            break
        watch = Watch(trials, results, goal, phase)
        errors = _fit(trials, results, watch, goal=goal, stop_early=stop_early, resources=resources)
        lost = {number: describe_error(error) for number, error in errors.items() if isinstance(error, RayActorError)}
        raised = {number: describe_error(error) for number, error in errors.items() if number not in lost}
        failures |= watch.failures | raised
    return failures | lost


def _fit(
    trials: Sequence[Trial],
    results: Sequence[TrialResult],
    watch: Watch,
    *,
    goal: Goal,
    stop_early: StopEarlyConfig,
    resources: dict[str, float],
) -> dict[int, RayError]:
    """Run the unfinished trials to their ends; return what they raised."""
    scheduler = ContinuedAsha(stop_early, goal, results) if stop_early.grace_steps else None
    todo = [result.number for result in results if result.ending == "unfinished"]
    actor = tune.with_parameters(TrialActor, trials=list(trials), goal=goal)
    with tempfile.TemporaryDirectory(prefix="salmonn-") as folder:  # for Tune's records; ours are the run folders
        tuner = tune.Tuner(
            tune.with_resources(actor, resources),
            param_space={"number": tune.grid_search(todo)},
            tune_config=tune.TuneConfig(
                scheduler=scheduler, reuse_actors=True, trial_dirname_creator=lambda trial: str(trial.config["number"])
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=folder,
                callbacks=[watch],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        try:
            # In the main thread Tune ends an interrupted sweep like a failed one.
            outcomes = call_in_thread(tuner.fit, stop_seconds=STOP_SECONDS)
        except (KeyboardInterrupt, SystemExit):
            ray.shutdown()  # the trials end before the sweep's folder is let go
            raise
        ended = [outcomes[place] for place in range(len(outcomes))]
    return {int(Path(outcome.path).name): outcome.error for outcome in ended if isinstance(outcome.error, RayError)}
