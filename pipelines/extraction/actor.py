"""An actor of an extraction as the driver sees it: what goes in and comes out; PyTorch is loaded in the actor alone."""

import os

from cluster.logs import set_up_logging
from cluster.node import this_node
from cluster.unit_queue import Attempt
from pipelines.cache.plan import ExtractUnit
from pipelines.extraction.messages import UnitStats, WorkerConfig


class ExtractActor:
    """An `ExtractWorker` in a process of its own; plain Python, wrapped as a Ray actor where it is used."""

    def __init__(self, config: WorkerConfig) -> None:
        from pipelines.extraction.worker import ExtractWorker

        set_up_logging(f"encoder {os.getpid()}")  # into the process's file in Ray's session folder
        self._worker = ExtractWorker(config, this_node())

    def ready(self) -> str:
        """Return the node's name once the weights are loaded."""
        return self._worker.node

    def run(self, unit: ExtractUnit, attempt: Attempt) -> UnitStats:
        """Encode a unit and commit its shard. Raises as `ExtractWorker.run`."""
        return self._worker.run(unit, attempt)

    def progress(self) -> float:
        """Return how many clips of the running unit are encoded; answered in a thread beside `run`."""
        return self._worker.clips_done()
