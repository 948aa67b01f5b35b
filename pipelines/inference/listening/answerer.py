"""Who answers `ask`, and with what: without PyTorch, for a server may do it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Answer:
    """What was asked about a recording and answered; `error` says why it cannot be heard."""

    recording: str
    question: str
    answer: str = ""
    error: str = ""
    heard_seconds: float = 0.0
    """[seconds] How much of the recording was heard, from its start."""
    given_seconds: float = 0.0
    """[seconds] How long the recording is."""
    is_cut: bool = False
    """Whether the answer ended because it may be no longer."""


class Answerer(Protocol):
    """Who answers."""

    def answer(self, recordings: Sequence[str], question: str) -> list[Answer]:
        """Return the answers to a question about recordings, in their order."""
        ...
