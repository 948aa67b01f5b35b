"""Our scores in the rows of the paper's tables, beside what it publishes.

SALMONN (Tang et al., ICLR 2024, arXiv:2310.13289) publishes each number without and with its activation tuning, and for
most tasks a system that does that task alone. `docs/scores.md` says where our scores are computed in another way.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.inference.scoring.answers import Score, TaskScores
from pipelines.inference.scoring.tasks import OTHER, TASKS
from pipelines.interface.markdown import markdown_table

NOTHING = "—"
HEAD = (
    "level",
    "task",
    "test set",
    "score",
    "unit",
    "ours",
    "answers",
    "paper, no tuning",
    "paper, tuned",
    "reference",
)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A number of the paper, in its unit.

    Args:
        task: Our name of the task.
        score: Our name of the score.
        unit: `%`: a hundred times our value.
        without: Without activation tuning.
        tuned: With it.
        reference: Of the system that the paper compares with; None: it names none.
        test_set: Of the paper, where a task has several.
    """

    task: str
    score: str
    unit: str = "%"
    without: float
    tuned: float
    reference: float | None = None
    test_set: str = ""

    def is_on(self, test_set: str) -> bool:
        """Tell whether a test set's name has every word of this one's, such as `librispeech test-clean`."""
        return all(word in test_set.lower() for word in self.test_set.lower().split())


PUBLISHED = (
    Published(task="asr", score="wer", test_set="LibriSpeech clean", without=2.1, tuned=2.1, reference=2.2),
    Published(task="asr", score="wer", test_set="LibriSpeech other", without=4.9, tuned=4.9, reference=5.1),
    Published(task="asr", score="wer", test_set="GigaSpeech", without=9.1, tuned=10.0, reference=9.2),
    Published(task="en2zh", score="bleu4", without=34.4, tuned=33.1, reference=38.9),
    Published(task="audiocaption", score="meteor", test_set="AudioCaps", without=25.6, tuned=24.0, reference=25.0),
    Published(task="audiocaption", score="spider", test_set="AudioCaps", without=47.6, tuned=40.3, reference=48.5),
    Published(task="phone_recognition", score="per", without=4.2, tuned=4.2, reference=3.1),
    Published(task="emotion_recognition", score="accuracy", unit="", without=0.63, tuned=0.69, reference=0.81),
    Published(task="music_caption", score="bleu4", test_set="MusicCaps", without=3.5, tuned=5.5, reference=6.1),
    Published(task="music_caption", score="rouge_l", test_set="MusicCaps", without=22.1, tuned=21.8, reference=21.5),
    Published(task="overlapped_speech_recognition", score="cpwer", without=20.7, tuned=23.0, reference=7.6),
    Published(task="speaker_verification", score="accuracy", unit="", without=0.93, tuned=0.94),
    Published(task="en2de", score="bleu4", without=19.7, tuned=18.6),
    Published(task="en2ja", score="bleu4", without=22.0, tuned=22.7),
    Published(task="keywords", score="accuracy", unit="", without=0.30, tuned=0.32),
    Published(task="sqqa", score="accuracy", unit="", without=0.19, tuned=0.41),
    Published(task="sqqa", score="following_rate", unit="", without=0.29, tuned=0.98),
    Published(task="slot_filling", score="accuracy", unit="", without=0.33, tuned=0.41),
    Published(task="slot_filling", score="following_rate", unit="", without=0.77, tuned=0.99),
    Published(task="audio_story", score="diversity", unit="words", without=7.77, tuned=82.57),
    Published(task="audio_story", score="following_rate", unit="", without=0.00, tuned=1.00),
    Published(task="speech_audio_coreasoning", score="accuracy", unit="", without=0.02, tuned=0.50),
    Published(task="speech_audio_coreasoning", score="following_rate", unit="", without=0.04, tuned=0.73),
)


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """A row: a score of ours, or none, beside what the paper publishes, or nothing.

    Args:
        level: Of the task.
        task: Its name.
        test_set: Ours, or the paper's where there is nothing of ours.
        score: Name of the score.
        unit: `%`, `words` or none: what all numbers of the row are in.
        ours: Our score, as a fraction; None if it was not measured.
        published: The paper's numbers; None if it publishes none for this score on this test set.
    """

    level: int
    task: str
    test_set: str
    score: str
    unit: str
    ours: Score | None
    published: Published | None


def paper_table(scores: Iterable[TaskScores]) -> list[PaperRow]:
    """Return a row for each number of the paper, and for each test set of ours that it has no number for.

    Rows come in the order of the task table. A task's score stands beside the paper's number of the same task, score
    and test set; a number that names no test set stands beside any.
    """
    found = list(scores)
    others = [task for task in dict.fromkeys(one.task for one in found) if task not in TASKS]
    return [row for task in (*TASKS, *others) for row in _rows(task, [one for one in found if one.task == task])]


def _rows(task: str, found: Sequence[TaskScores]) -> list[PaperRow]:
    published = [one for one in PUBLISHED if one.task == task]
    rows = []
    for one in published:
        measured = [scores for scores in found if one.is_on(scores.test_set)]
        rows += [_row(task, one.score, scores, one) for scores in measured] or [_row(task, one.score, None, one)]
    first = TASKS.get(task, OTHER).scores[0]
    known = [scores for scores in found if any(one.is_on(scores.test_set) for one in published)]
    rows += [_row(task, first, scores, None) for scores in found if scores not in known]
    return rows or [_row(task, first, None, None)]


def _row(task: str, score: str, scores: TaskScores | None, published: Published | None) -> PaperRow:
    ours = next((one for one in scores.scores if one.name == score), None) if scores else None
    return PaperRow(
        level=TASKS.get(task, OTHER).level,
        task=task,
        test_set=scores.test_set if scores else published.test_set if published else "",
        score=score,
        unit=published.unit if published else _unit(score),
        ours=ours,
        published=published,
    )


def _unit(score: str) -> str:
    """Return the unit that the paper gives this score elsewhere."""
    return next((one.unit for one in PUBLISHED if one.score == score), "")


def cells(row: PaperRow) -> tuple[str, ...]:
    """Return a row's cells below `HEAD`, `—` where there is nothing; our value stands with its interval."""
    published = row.published
    numbers = (published.without, published.tuned, published.reference) if published else (None, None, None)
    words = (str(row.level), row.task, row.test_set or NOTHING, row.score, row.unit or NOTHING, _ours(row))
    return (*words, str(row.ours.items) if row.ours else NOTHING, *(_number(number, row.unit) for number in numbers))


def _ours(row: PaperRow) -> str:
    if row.ours is None or row.ours.value is None:
        return NOTHING
    value, low, high = (
        None if number is None else number * _scale(row.unit)
        for number in (row.ours.value, row.ours.low, row.ours.high)
    )
    shown = _number(value, row.unit)
    return shown if low is None else f"{shown} ({_number(low, row.unit)} to {_number(high, row.unit)})"


def _scale(unit: str) -> int:
    return 100 if unit == "%" else 1


def _number(number: float | None, unit: str) -> str:
    return NOTHING if number is None else f"{number:.1f}" if unit == "%" else f"{number:.2f}"


def to_markdown(rows: Iterable[PaperRow]) -> str:
    """Return the table in Markdown."""
    return markdown_table(HEAD, map(cells, rows))


def to_json(rows: Iterable[PaperRow]) -> list[dict[str, Any]]:
    """Return a JSON object for each row, its numbers in the row's unit and not rounded."""
    return [
        {
            "level": row.level,
            "task": row.task,
            "test_set": row.test_set,
            "score": row.score,
            "unit": row.unit,
            **_ours_in_unit(row),
            "paper_without_tuning": row.published.without if row.published else None,
            "paper_tuned": row.published.tuned if row.published else None,
            "paper_reference": row.published.reference if row.published else None,
        }
        for row in rows
    ]


def _ours_in_unit(row: PaperRow) -> dict[str, Any]:
    ours, scale = row.ours, _scale(row.unit)
    if ours is None:
        return {"ours": None, "low": None, "high": None, "items": 0, "signature": "", "notes": []}
    numbers = {"ours": ours.value, "low": ours.low, "high": ours.high}
    scaled = {name: None if number is None else number * scale for name, number in numbers.items()}
    return {**scaled, "items": ours.items, "signature": ours.signature, "notes": list(ours.notes)}
