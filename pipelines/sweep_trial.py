"""A trial of a sweep, a run like any other, and the Ray Tune actor that trains one after another in its process."""

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ray
import torch
from ray import tune

from pipelines.curves import scalars_of
from pipelines.interface.errors import JobIncompleteError
from pipelines.parts import Parts
from pipelines.sweep_space import shown
from pipelines.train_config import TrainConfig
from pipelines.train_loop import TrainWorker

Mode = Literal["min", "max"]
WORST = 1e300
"""Score of a loss that is not finite: it can be ranked, and percentiles of it are numbers."""


@dataclass(frozen=True)
class Trial:
    """One variant: `config` is the sweep's with the `values` of the keys that are swept, in a run folder of its own."""

    number: int
    values: Mapping[str, Any]
    config: TrainConfig

    def __str__(self) -> str:
        return name_trial(self.number, self.values)


def name_trial(number: int, values: Mapping[str, Any]) -> str:
    """Return how messages name a trial."""
    return f"trial {number} ({', '.join(f'{key}={shown(value)}' for key, value in values.items())})"


@dataclass(frozen=True)
class Goal:
    """What trials are ranked by: a number of the lines of metrics, and whether the lowest or the highest is best."""

    metric: str
    mode: Mode

    def score(self, line: Mapping[str, Any]) -> float | None:
        """Return a line's score, None where it has none."""
        score = scalars_of(line).get(self.metric)
        if score is None or math.isfinite(score):
            return score
        return WORST if self.mode == "min" else -WORST

    def best(self, scores: Sequence[tuple[int, float]]) -> tuple[int, float] | None:
        """Return step and score of the best of some (step, score), the first of equals; None of none."""
        sign = 1 if self.mode == "min" else -1
        return min(scores, key=lambda scored: sign * scored[1], default=None)


class TrialActor(tune.Trainable):
    """Trains a trial line by line of metrics; the next trial finds the process's imports, cache and LLM in place."""

    def setup(self, config: dict[str, Any], trials: Sequence[Trial], goal: Goal) -> None:  # type: ignore[override]  # the last two are added by `with_parameters`
        self._trials, self._goal = {trial.number: trial for trial in trials}, goal
        self._parts = Parts()
        self._begin(config["number"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._lines.close()
        self._begin(new_config["number"])
        return True

    def _begin(self, number: int) -> None:
        self._trial = self._trials[number]
        self._lines = self._train()

    def _train(self) -> Generator[dict[str, Any]]:
        device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
        worker = TrainWorker(self._trial.config, 0, 1, device, parts=self._parts)
        for line in worker.lines():
            worker.writer.wait()  # a trial may be stopped here, and its process soon after
            yield line

    def step(self) -> dict[str, Any]:
        """Train to the next line: return its step and score, whether it is the last and, where it failed, why.

        What trying again may mend (a store that does not answer, memory) is raised.
        """
        steps = self._trial.config.steps
        try:
            line = next(self._lines, {"step": steps})
            if line["step"] == steps:
                next(self._lines, None)  # what is left to be saved
        except (JobIncompleteError, ValueError, FileNotFoundError) as error:
            return {"failed": str(error), "done": True}
        score = self._goal.score(line)
        return {"step": line["step"], "done": line["step"] == steps} | ({} if score is None else {"score": score})

    def cleanup(self) -> None:
        self._lines.close()
