"""Which answers are shown, the worst of each task and test set first, and where labels were taken for one another."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.inference.answer_table import OWN, TaskAnswers
from pipelines.inference.scoring.answers import Answered
from pipelines.inference.scoring.labels import LABEL_WORDS, first_label, holds
from pipelines.inference.scoring.scores import LOW_IS_GOOD, score_each
from pipelines.inference.scoring.texts import normalise

MOST_LABELS = 20
NONE = "none of them"


@dataclass(frozen=True)
class Confusion:
    """How often each label was answered [right label][answered label], both in the order of `labels`.

    The last one stands for answers that name none of the labels, or several.
    """

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Worst:
    """The worst answers of a task on a test set.

    Args:
        task: Its name.
        corpus: Where the clips come from.
        test_set: Its name.
        score: What the answers are ordered by.
        questions: How many answers there are.
        rows: Of the worst: the columns of answers.parquet, and `value`, NaN where the answer has none.
        confusion: None where answers are no labels, or more than `MOST_LABELS`.
    """

    task: str
    corpus: str
    test_set: str
    score: str
    questions: int
    rows: tuple[dict[str, Any], ...]
    confusion: Confusion | None


def worst_answers(part: TaskAnswers, most: int) -> Worst:
    """Return the worst answers by the task's first score that they have, at most `most`; equal ones in their order."""
    answered = part.heard(OWN)
    score, values = score_each(part.task, answered)
    badness = values if score in LOW_IS_GOOD else -values
    order = np.argsort(-badness, kind="stable")[:most]  # NaN comes last
    return Worst(
        task=part.task,
        corpus=part.corpus,
        test_set=part.test_set,
        score=score,
        questions=len(answered),
        rows=tuple({**part.rows[place], "value": float(values[place])} for place in order),
        confusion=confusion(part.task, answered, values == 1) if score == "accuracy" else None,
    )


def confusion(task: str, answered: Sequence[Answered], is_right: Sequence[bool]) -> Confusion | None:
    """Count which label was answered where which was right; a right answer counts as the right label.

    Labels are those of the task, or the references where there are at most `MOST_LABELS` different ones, each twice
    on average. None where that is not so.
    """
    read = _reader(task, answered)
    if read is None:
        return None
    right = [read(item.references[0]) or NONE for item in answered]
    named = [read(item.answer) or NONE for item in answered]
    found = Counter(
        (label, label if is_so else NONE if name == label else name)
        for label, name, is_so in zip(right, named, is_right, strict=True)
    )
    labels = (*sorted({label for pair in found for label in pair} - {NONE}), NONE)
    return Confusion(labels, tuple(tuple(found[label, other] for other in labels) for label in labels))


def _reader(task: str, answered: Sequence[Answered]) -> Callable[[str], str | None] | None:
    """Return what reads the label that a text names; None where answers are no labels."""
    if task in LABEL_WORDS:
        return first_label(LABEL_WORDS[task])
    labels = {normalise(item.references[0]) for item in answered} - {""}
    if len(labels) > MOST_LABELS or 2 * len(labels) > len(answered):
        return None
    return lambda text: _only_label(text, labels)


def _only_label(text: str, labels: Collection[str]) -> str | None:
    """Return the one label that a text holds; of labels within each other the longest."""
    if (whole := normalise(text)) in labels:
        return whole
    held = [label for label in labels if holds(text, label)]
    longest = [label for label in held if not any(other != label and holds(other, label) for other in held)]
    return longest[0] if len(longest) == 1 else None
