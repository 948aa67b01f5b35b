"""Which trials are stopped early: Ray Tune's ASHA, which compares each with the trials that came as far before it."""

from collections.abc import Sequence
from typing import Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler

from pipelines.training.sweep.config import StopEarlyConfig
from pipelines.training.sweep.results import TrialResult
from pipelines.training.sweep.trial import Goal

NO_CONTROLLER: Any = None
"""ASHA does not look at it."""


class Asha:
    """Tune's ASHA, which knows what trials came to before this call, and does not judge that again."""

    def __init__(self, config: StopEarlyConfig, goal: Goal, results: Sequence[TrialResult]) -> None:
        """Take what all trials came to so far."""
        self._asha = ASHAScheduler(
            time_attr="step",
            metric="score",
            mode=goal.mode,
            max_t=max(result.steps for result in results),
            grace_period=config.grace_steps,
            reduction_factor=config.reduction,
            stop_last_trials=False,
        )
        self._before = {result.number: result.scores for result in results}
        self._known: dict[int, TuneTrial] = {}
        for result in results:
            if result.ending != "unfinished":
                self._trial(result.number)

    def _trial(self, number: int) -> TuneTrial:
        """Return what stands for a trial; at the first time it goes through what the trial came to before."""
        if number not in self._known:
            self._known[number] = trial = TuneTrial("trial", stub=True)
            self._asha.on_trial_add(NO_CONTROLLER, trial)
            for step, score in self._before[number]:
                self._asha.on_trial_result(NO_CONTROLLER, trial, {"step": step, "score": score})
        return self._known[number]

    def stops(self, number: int, *, step: int, score: float) -> bool:
        """Return whether a trial with this score at this step is to be stopped."""
        decision = self._asha.on_trial_result(NO_CONTROLLER, self._trial(number), {"step": step, "score": score})
        return bool(decision == ASHAScheduler.STOP)
