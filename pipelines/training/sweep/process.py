"""The Ray actor that trains trials: one after another, or several by turns over one frozen LLM."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import ray
import torch

from pipelines.errors import USER_ERRORS, JobIncompleteError
from pipelines.training.sweep.trial import Goal, Trial
from pipelines.training.worker.loop import TrainWorker
from pipelines.training.worker.resources import RunResources


class TrialProcess:
    """Trains each of its trials line by line of metrics; all of them use its imports, its cache and its LLM.

    Ray calls one method at a time, so that a trial's steps are never mixed with another's. While one is computed, the
    others read ahead. What is drawn at random is drawn from seeds set for each micro-batch: a trial is, bit for bit,
    what it is alone.
    """

    def __init__(self, trials: Sequence[Trial], goal: Goal) -> None:
        """Take what the process may be asked to train; nothing is opened yet."""
        self._trials, self._goal = {trial.number: trial for trial in trials}, goal
        self._device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
        self._resources = RunResources()
        self._under_way: dict[int, Iterator[dict[str, Any]]] = {}

    def pid(self) -> int:
        """Return the process's number, once it is there."""
        return os.getpid()

    def train_on(self, number: int) -> dict[str, Any]:
        """Train a trial to its next line: return its step and score, whether it is the last and, if it failed, why.

        Anything else that goes wrong is raised; whoever asked ends the process then, whose device may be of no use.
        """
        steps = self._trials[number].config.steps
        try:
            if number not in self._under_way:
                self._under_way[number] = self._lines(self._trials[number])
            line = next(self._under_way[number], {"step": steps})
            if line["step"] == steps:
                next(self._under_way[number], None)  # what is left to be saved
        except (JobIncompleteError, FileNotFoundError, *USER_ERRORS) as error:
            self.end(number)
            return {"failed": str(error)}
        except BaseException:
            self.end(number)
            raise
        if is_last := line["step"] == steps:
            self.end(number)
        score = self._goal.score(line)
        return {"step": line["step"], "is_last": is_last} | ({} if score is None else {"score": score})

    def end(self, number: int) -> None:
        """Let go of a trial; what it has written is complete then."""
        lines: Any = self._under_way.pop(number, None)
        if lines:
            lines.close()

    def _lines(self, trial: Trial) -> Iterator[dict[str, Any]]:
        worker = TrainWorker(trial.config, 0, 1, self._device, resources=self._resources)
        for line in worker.lines():
            worker.writer.wait()  # a trial may be stopped here, and its process soon after
            yield line
