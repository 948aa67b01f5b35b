"""Units and actors that fail in every way there is."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from cluster.unit_queue import Attempt, FatalUnitError, NotHereError


@dataclass(frozen=True)
class FakeUnit:
    unit_id: str
    action: str = "work"
    seconds: float = 0.0
    last_bad_attempt: int = 1_000
    """The action is taken up to this attempt; later ones just work."""
    blind: tuple[str, ...] = ()
    """Nodes that refuse it."""


class FakeActor:
    def __init__(self, folder: str = "", start_seconds: float = 0.0, node: str = "a") -> None:
        self.folder, self.node = folder, node
        time.sleep(start_seconds)

    def ready(self) -> str:
        return self.node

    def progress(self) -> float:
        return 0.5

    def run(self, unit: FakeUnit, attempt: Attempt) -> tuple[str, int]:
        if self.folder:
            (Path(self.folder) / f"{unit.unit_id}.{attempt.number}").write_text(str(os.getpid()))
        time.sleep(unit.seconds)
        if unit.action == "refused" and self.node in unit.blind:
            raise NotHereError(self.node, (unit.unit_id,), f"{unit.unit_id}: no such file")
        if attempt.number <= unit.last_bad_attempt:
            self._act(unit, attempt.number)
        return unit.unit_id, os.getpid()

    def _act(self, unit: FakeUnit, attempt: int) -> None:
        if unit.action == "raise":
            raise OSError(f"{unit.unit_id}: disk on fire, attempt {attempt}")
        if unit.action == "hang":
            time.sleep(600)
        if unit.action == "die":
            os._exit(7)
        if unit.action == "fatal":
            raise FatalUnitError(f"{unit.unit_id}: all is lost")


class RaisesAtStart(FakeActor):
    def __init__(self) -> None:
        raise ValueError("weights.pt: no such\n  file")


class DiesAtStart(FakeActor):
    def __init__(self) -> None:
        os._exit(9)
