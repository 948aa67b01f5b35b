"""The Ray actor that trains one trial after another."""

from collections.abc import Generator, Sequence
from typing import Any

import ray
import torch
from ray import tune

from pipelines.errors import USER_ERRORS, JobIncompleteError
from pipelines.training.sweep.trial import Goal, Trial
from pipelines.training.worker.loop import TrainWorker
from pipelines.training.worker.resources import RunResources


class TrialActor(tune.Trainable):
    """Trains a trial line by line of metrics; the next trial finds the process's imports, cache and LLM in place."""

    def setup(self, config: dict[str, Any], trials: Sequence[Trial], goal: Goal) -> None:  # type: ignore[override]  # the last two are added by `with_parameters`
        self._trials, self._goal = {trial.number: trial for trial in trials}, goal
        self._resources = RunResources()
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
        worker = TrainWorker(self._trial.config, 0, 1, device, resources=self._resources)
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
        except (JobIncompleteError, FileNotFoundError, *USER_ERRORS) as error:
            return {"failed": str(error), "done": True}
        score = self._goal.score(line)
        return {"step": line["step"], "done": line["step"] == steps} | ({} if score is None else {"score": score})

    def cleanup(self) -> None:
        self._lines.close()
