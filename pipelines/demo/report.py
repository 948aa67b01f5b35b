"""The demo's scores beside chance and silence, and how long its phases took."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from pipelines import storage
from pipelines.demo.corpus import DemoCorpus
from pipelines.inference.scoring.answers import TaskScores
from pipelines.runs.evaluations import PAGE


@dataclass(frozen=True)
class HeldOut:
    """One of the demo's scores beside what guessing would give."""

    name: str
    score: float
    chance: float
    silence: float | None
    """The score of the same questions where nothing is heard; None where that was not tried."""


class Stopwatch:
    """Seconds per phase, in the order of the phases."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start


def held_out_scores(
    scores: Sequence[TaskScores], corpus: DemoCorpus, silence: Mapping[tuple[str, str], float | None]
) -> list[HeldOut]:
    """Name each task's score and what guessing would give: one in as many as there are words or events.

    Args:
        scores: Of the tasks.
        corpus: That was asked about.
        silence: (task, score) -> its value where nothing is heard; may be empty.
    """
    words = sum(1 / len(slot) for slot in corpus.word_slots) / len(corpus.word_slots)
    events = 1 / len(corpus.event_names)
    known = {
        "asr": ("spoken words, unheard speakers", "word_accuracy", words),
        "sqa": ("questions about the words", "accuracy", words),
        "audiocaption": ("captions of sound events", "accuracy", events),
        "aqa": ("questions about the events", "accuracy", events),
    }
    found = []
    for task in scores:
        name, score, chance = known[task.task]
        if (value := task.value(score)) is not None:
            found.append(HeldOut(name, value, chance, silence.get((task.task, score))))
    return found


def scores_with_silence(evaluation: str) -> dict[tuple[str, str], float | None]:
    """Return (task, score) -> its value where nothing is heard, as an evaluation's folder has it."""
    report = storage.read_json(storage.join(evaluation, "scores.json"))
    silent = [task["silence"] for task in report["tasks"] if task["silence"]]
    return {(task["task"], score["name"]): score["value"] for task in silent for score in task["scores"]}


def page_address(out: str, evaluation: str) -> str:
    """Return how a page in `out` links to the page of an evaluation somewhere below."""
    page = Path(storage.full_path(storage.join(evaluation, PAGE)))
    return quote(page.relative_to(storage.full_path(out)).as_posix())
