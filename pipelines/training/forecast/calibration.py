"""A training step's time, measured for a few seconds with the real model on real batches."""

import platform
import time
from dataclasses import dataclass, replace

import torch

from pipelines.batches.micro_batch import WorkerBatch
from pipelines.storage.ahead import ReadAhead
from pipelines.training.config import TrainConfig
from pipelines.training.monitoring.step_timer import peak_memory_nbytes
from pipelines.training.worker.loop import Tally, TrainWorker

MOST_STEPS = 1_000_000


@dataclass(frozen=True)
class StepTime:
    """What the worker with the most micro-batches takes for a step, and its reading, which goes on meanwhile."""

    compute_seconds: float
    read_seconds: float | None
    """None where nothing was read."""
    measured_steps: int
    device: str
    peak_nbytes: int | None
    """The most that was held on a GPU; None without one."""

    @property
    def seconds(self) -> float:
        """How long a step lasts: as the slower of both."""
        return max(self.compute_seconds, self.read_seconds or 0.0)


def worker_examples(config: TrainConfig) -> int:
    """Return how many of a batch's examples, if they are equally long, fall to the worker with the most."""
    parts = -(-config.batch_examples // config.micro_batch_examples)
    each, longer = divmod(config.batch_examples, parts)
    return -(-parts // config.workers) * each + -(-longer // config.workers)


def measure_step(config: TrainConfig, *, seconds: float) -> StepTime:
    """Train one worker's share of the batches here for so long, one step at least, after a first that warms up.

    The run must have been described. What is learnt is forgotten; the workers' sum is not in the time.
    """
    device = torch.device("cuda" if torch.cuda.is_available() and config.device != "cpu" else "cpu")
    alone = replace(config, workers=1, min_workers=0, init_from="", valid_every=0)
    share = replace(alone, batch_examples=worker_examples(config))
    worker = TrainWorker(share, 0, 1, device)
    worker.model.train()
    reads: list[float] = []

    def read(step: int) -> WorkerBatch:
        start = time.perf_counter()
        batch = worker.read_batch(step)
        reads.append(time.perf_counter() - start)
        return batch

    timeout_seconds = 2 * config.read.timeout_seconds
    ahead = ReadAhead(read, range(MOST_STEPS), ahead_steps=config.read.ahead_steps, timeout_seconds=timeout_seconds)
    tally, steps = Tally.of(worker.tasks), 0
    worker.train_step(ahead.take(), tally)
    worker.timer.take()
    begun = time.perf_counter()
    while not steps or time.perf_counter() - begun < seconds:
        worker.train_step(ahead.take(), tally)
        steps += 1
    on_gpu = device.type == "cuda"
    later = reads[1:] or reads  # the first opens the shards
    return StepTime(
        compute_seconds=worker.timer.take()["step_seconds"],
        read_seconds=sum(later) / len(later),
        measured_steps=steps,
        device=torch.cuda.get_device_name() if on_gpu else platform.machine(),
        peak_nbytes=peak_memory_nbytes(device) if on_gpu else None,
    )
