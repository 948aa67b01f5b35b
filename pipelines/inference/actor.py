"""An answering actor as the driver sees it; PyTorch is loaded in the actor alone."""

import os

from cluster.logs import set_up_logging
from cluster.node import this_node
from cluster.unit_queue import Attempt
from pipelines.inference.units import AnswerConfig, AnswerUnit, UnitAnswers


class AnswerActor:
    """An `AnswerWorker` in a process of its own; plain Python, wrapped as a Ray actor where it is used."""

    def __init__(self, config: AnswerConfig) -> None:
        from pipelines.inference.worker import AnswerWorker

        set_up_logging(f"answering {os.getpid()}")
        self._worker = AnswerWorker(config, this_node())

    def ready(self) -> str:
        """Return the node's name once the model is loaded."""
        return self._worker.node

    def run(self, unit: AnswerUnit, attempt: Attempt) -> UnitAnswers:
        """Answer a unit's questions and keep the answers. Raises as `AnswerWorker.run`."""
        return self._worker.run(unit)

    def progress(self) -> float:
        """Return how many questions of the running unit are answered; told by a thread beside `run`."""
        return float(self._worker.answered)
