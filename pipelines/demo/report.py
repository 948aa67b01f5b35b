"""The demo's scores beside chance, and how long its phases took."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pipelines.demo.corpus import DemoCorpus
from pipelines.inference.evaluate import TaskScore


@dataclass(frozen=True)
class HeldOut:
    """One of the demo's scores beside what guessing would give."""

    name: str
    score: float
    chance: float


class Stopwatch:
    """Seconds per phase, in the order of the phases."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start


def held_out_scores(scores: Sequence[TaskScore], corpus: DemoCorpus) -> list[HeldOut]:
    """Name each task's score and what guessing would give: one in as many as there are words or events."""
    words = sum(1 / len(slot) for slot in corpus.word_slots) / len(corpus.word_slots)
    events = 1 / len(corpus.event_names)
    known = {
        "asr": ("spoken words, unheard speakers", "word_accuracy", words),
        "sqa": ("questions about the words", "accuracy", words),
        "audiocaption": ("captions of sound events", "accuracy", events),
        "aqa": ("questions about the events", "accuracy", events),
    }
    return [
        HeldOut(name, task.metrics[metric], chance) for task in scores for name, metric, chance in [known[task.task]]
    ]
