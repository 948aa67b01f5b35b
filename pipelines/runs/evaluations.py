"""What a run's evaluations found, as far as tables of runs show it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa

from pipelines import storage
from pipelines.errors import UserError

EVALUATION = "evaluation"
"""Of a run: a folder for each evaluation, named for its splits."""
PAGE = "page/index.html"
"""Below an evaluation's folder; the sounds that it plays are beside it, in `audio`."""
FoundT = TypeVar("FoundT")
ANSWERS_SHOWN = 3
"""Of each task."""
ROWS_AT_ONCE = 4_096
ANSWER_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("question", pa.string()),
        ("references", pa.list_(pa.string())),
        ("answer", pa.string()),
    ]
)


def read_scores(run: str) -> dict[str, float]:
    """Return the scores in <run>/evaluation/<splits>/scores.json, each named `<test set> <task> <score>`.

    Raises:
        UserError: If a file is damaged.
    """
    return {" ".join(name): value for _, found in _read(run, _scores) for name, value in found.items()}


def evaluated_steps(run: str) -> set[int]:
    """Return the checkpoints that a run's evaluations scored.

    Raises:
        UserError: If a file is damaged.
    """
    return {step for _, step in _read(run, lambda content: int(content["step"]))}


def _read(run: str, look_up: Callable[[Any], FoundT]) -> Iterator[tuple[str, FoundT]]:
    """Yield the splits of each evaluation, and what is looked up in its scores.json."""
    for splits in storage.list_folders(storage.join(run, EVALUATION)):
        uri = storage.join(run, EVALUATION, splits, "scores.json")
        if not storage.file_exists(uri):
            continue
        content = storage.read_json(uri)
        try:
            found = look_up(content)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{uri}: damaged, not an evaluation's scores ({error!r})") from None
        yield splits, found


def _scores(content: Any) -> dict[tuple[str, str, str], float]:
    return {
        (task["test_set"], task["task"], score["name"]): float(score["value"])
        for task in (heard["own"] for heard in content["tasks"])
        for score in task["scores"]
        if score["value"] is not None
    }


@dataclass(frozen=True)
class Evaluation:
    """What a run's evaluation on some splits found, as a page about the run shows it."""

    splits: str
    scores: dict[tuple[str, str, str], float]
    """By test set, task and score."""
    answers: list[tuple[str, str, str, str]]
    """Task, question, reference and answer of the first questions of each task."""
    has_page: bool


def evaluations_of(run: str) -> list[Evaluation]:
    """Return a run's evaluations, by the names of their splits.

    Raises:
        UserError: If a file is damaged.
    """
    return [
        Evaluation(
            splits,
            scores,
            _answers_in(storage.join(run, EVALUATION, splits, "answers.parquet")),
            storage.file_exists(storage.join(run, EVALUATION, splits, PAGE)),
        )
        for splits, scores in _read(run, _scores)
    ]


def _answers_in(uri: str) -> list[tuple[str, str, str, str]]:
    if not storage.file_exists(uri):
        return []
    shown: dict[str, list[tuple[str, str, str, str]]] = {}
    with storage.open_parquet(uri, ANSWER_SCHEMA) as file:
        for batch in storage.iter_batches(file, ROWS_AT_ONCE, ANSWER_SCHEMA.names):
            for row in batch.to_pylist():
                of_task = shown.setdefault(row["task"], [])
                if len(of_task) < ANSWERS_SHOWN and row["answer"] is not None:
                    of_task.append((row["task"], row["question"], (row["references"] or [""])[0], row["answer"]))
    return [answer for task in sorted(shown) for answer in shown[task]]
