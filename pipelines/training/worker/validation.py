"""Loss and token accuracy on held-out examples while a run trains, the same numbers on any number of workers."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llm.salmonn import Salmonn
from pipelines.batches.micro_batch import CORRECT, LOSS, TARGETS, MicroBatchReader, WorkerBatch, loss_by_task
from pipelines.cache.read_config import ReadConfig
from pipelines.storage.ahead import ReadAhead
from pipelines.training.worker.agreement import together


@dataclass(frozen=True)
class Validation:
    """What is validated on; examples are asked a task's first question and dealt to workers as in training."""

    reader: MicroBatchReader
    batch_examples: int
    micro_batch_examples: int
    read: ReadConfig
    in_step: bool
    """Whether all workers have to compute the same number of times."""

    def sums(self, model: Salmonn, *, rank: int, world: int, device: torch.device) -> Tensor:
        """Return the sums [tasks, 3] of all examples, on every rank; raises as `together` where reading fails.

        Each micro-batch's sums travel by themselves and are added up in the end, so that no rounding depends on who
        computed which.
        """
        parts = self.parts(model, rank=rank, world=world, device=device)
        if world > 1:
            dist.all_reduce(parts)
        return parts.sum(dim=(0, 1)).cpu()

    @torch.no_grad()
    def parts(self, model: Salmonn, *, rank: int, world: int, device: torch.device) -> Tensor:
        """Return one rank's sums [batches, micro-batches, tasks, 3], zeros where others compute; dropout is off."""
        tasks = self.reader.tasks
        batches = range(-(-len(self.reader.examples) // self.batch_examples))
        per_batch = -(-self.batch_examples // self.micro_batch_examples)
        parts = torch.zeros(len(batches), per_batch, len(tasks), 3, dtype=torch.float64, device=device)
        timeout_seconds = 2 * self.read.timeout_seconds
        ahead = ReadAhead(
            partial(self._read, rank=rank, world=world),
            batches,
            ahead_steps=self.read.ahead_steps,
            timeout_seconds=timeout_seconds,
        )
        was_training = model.training
        model.eval()
        try:
            for batch in batches:
                with together("validation", device=device):
                    read = ahead.take()
                for part in read.mine:
                    parts[batch, part.number] = loss_by_task(model, part, len(tasks), device)[1]
                if read.filler:
                    loss_by_task(model, read.filler, len(tasks), device)
        finally:
            model.train(was_training)
        return parts

    def _read(self, number: int, *, rank: int, world: int) -> WorkerBatch:
        first = number * self.batch_examples
        picked = [(0, index) for index in range(first, min(first + self.batch_examples, len(self.reader.examples)))]
        return self.reader.read(picked, size=self.micro_batch_examples, rank=rank, world=world, in_step=self.in_step)


def means(tasks: list[str], sums: Tensor, prefix: str = "") -> dict[str, Any]:
    """Return loss and accuracy per target token of all tasks together, and the loss of each task that had any."""
    total = sums.sum(dim=0)
    return {
        f"{prefix}loss": float(total[LOSS] / total[TARGETS]),
        f"{prefix}token_accuracy": float(total[CORRECT] / total[TARGETS]),
        f"{prefix}loss_by_task": {
            task: float(row[LOSS] / row[TARGETS]) for task, row in zip(tasks, sums, strict=True) if row[TARGETS]
        },
    }
