"""An actor of an extraction as the driver sees it: what goes in and comes out; PyTorch is loaded in the actor alone."""

import os

from cluster.logs import set_up_logging
from pipelines.cache.plan import ExtractUnit
from pipelines.extraction.messages import UnitStats, WorkerConfig


class ExtractActor:
    """An `ExtractWorker` in a process of its own; plain Python, wrapped as a Ray actor where it is used."""

    def __init__(self, config: WorkerConfig) -> None:
        from pipelines.extraction.worker import ExtractWorker

        set_up_logging(f"encoder {os.getpid()}")  # into the process's file in Ray's session folder
        self._worker = ExtractWorker(config)

    def ready(self) -> None:
        """Answer once the weights are loaded."""

    def run(self, unit: ExtractUnit, attempt: int) -> UnitStats:
        """Encode a unit and commit its shard. Raises as `ExtractWorker.run`."""
        return self._worker.run(unit, attempt)
