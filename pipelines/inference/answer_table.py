"""What an evaluation keeps in answers.parquet: a row for each question, read by task and test set."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.inference.scoring.answers import Answered

ANSWERS = "answers.parquet"
OWN, SILENCE, OTHER = "answer", "answer_to_silence", "answer_to_other"
"""Columns: the answer where the question's own clip is heard, or nothing, or another clip."""
HEARD = (OWN, SILENCE, OTHER)
_GROUP = ["task", "corpus", "split"]


@dataclass(frozen=True)
class TaskAnswers:
    """The rows of a task on a test set, which is a corpus's split."""

    task: str
    corpus: str
    split: str
    rows: Sequence[dict[str, Any]]

    @property
    def test_set(self) -> str:
        return f"{self.corpus} {self.split}"

    def heard(self, column: str) -> list[Answered]:
        """Return the answers of one of the columns of `HEARD`, without the rows that have none."""
        return [
            Answered(
                clip_id=row["clip_id"],
                corpus=row["corpus"],
                question=row["question"],
                references=tuple(row["references"]),
                answer=row[column],
            )
            for row in self.rows
            if row.get(column) is not None
        ]


def by_test_set(answers: pa.Table) -> Iterator[TaskAnswers]:
    """Yield the rows of each task on each test set, in the order of their names."""
    for group, mask in test_sets(answers):
        yield TaskAnswers(**group, rows=answers.filter(mask).to_pylist())


def test_sets(table: pa.Table) -> Iterator[tuple[dict[str, str], pa.ChunkedArray]]:
    """Yield task, corpus and split, and which rows are of them, in the order of these names."""
    groups = table.group_by(_GROUP).aggregate([]).sort_by([(name, "ascending") for name in _GROUP])
    for group in groups.to_pylist():
        yield group, reduce(pc.and_, [pc.equal(table[name], value) for name, value in group.items()])
