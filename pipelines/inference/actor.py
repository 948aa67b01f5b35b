"""An answering actor as the driver sees it; PyTorch is loaded in the actor alone."""

import logging
import os

from cluster.logs import set_up_logging
from cluster.node import this_node
from cluster.unit_queue import Attempt
from pipelines.inference.engines.choice import EngineGoneError
from pipelines.inference.units import AnswerConfig, AnswerUnit, UnitAnswers

logger = logging.getLogger(__name__)


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
        """Answer a unit's questions and keep the answers. Raises as `AnswerWorker.run`.

        Where another engine's process has ended, this one ends too: it would fail every unit that is left.
        """
        try:
            return self._worker.run(unit)
        except EngineGoneError:
            logger.exception("unit %s", unit.unit_id)
            os._exit(1)

    def progress(self) -> float:
        """Return how many questions of the running unit are answered; told by a thread beside `run`."""
        return float(self._worker.answered)
