"""Where a worker's time goes, part by part, and what its steps read and hold: numbers of a line of metrics."""

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pipelines.runs.metrics import STEP_PARTS, WAIT


class StepTimer:
    """Adds up what was timed since the last `take`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._clear()

    def _clear(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._steps = self._nbytes = 0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the block's time as a part's, to the end of what it started on a GPU."""
        start = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._seconds[name] += time.perf_counter() - start

    def end_step(self, *, nbytes: int) -> None:
        """Count a step whose batch, over all workers, took so many bytes from storage."""
        self._steps += 1
        self._nbytes += nbytes

    def take(self) -> dict[str, Any]:
        """Return the numbers of the steps since the last call, of which there must be one, and begin anew."""
        seconds = sum(self._seconds[part] for part in STEP_PARTS)
        numbers = {
            "step_seconds": seconds / self._steps,
            "data_wait_fraction": self._seconds[WAIT] / seconds,
            "megabytes_per_second": self._nbytes / 1e6 / seconds,
            "peak_memory_mb": peak_memory_nbytes(self._device) / 1e6,
            "seconds_by_part": dict(self._seconds),
        }
        self._clear()
        return numbers


def peak_memory_nbytes(device: torch.device) -> int:
    """Return the most that tensors have taken on a GPU, or this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
