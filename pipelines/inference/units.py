"""Questions without an answer, cut into units of work for the unit queue; what driver and workers tell each other."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.inference.answers import DecodeSettings
from pipelines.inference.questions import KEY
from pipelines.runs.spec import RunSpec

UNITS_PER_WORKER = 8
"""At least so many, so that all workers end at about the same time."""
MOST_QUESTIONS = 512
"""In a unit: what a machine's death costs."""


@dataclass(frozen=True, kw_only=True)
class AnswerConfig:
    """What a worker needs to answer."""

    run: str
    step: int
    spec: RunSpec
    cache: str
    stores: tuple[str, ...]
    """Where the answers of each of `settings` are kept."""
    settings: tuple[DecodeSettings, ...]
    whisper: str
    beats: str
    device: str
    threads: int
    batch_examples: int
    engine_python: str = ""
    """Runs the engine that the settings name; all of them are the same then."""


@dataclass(frozen=True)
class AnswerUnit:
    """Some questions, and which of a worker's settings they are answered with."""

    unit_id: str
    setting: int
    clip_ids: tuple[str, ...]
    questions: tuple[str, ...]


@dataclass(frozen=True)
class UnitAnswers:
    """What a unit sends back, once its answers are kept."""

    answers: int
    tokens: int
    seconds: float
    node: str


def cut_units(
    wanted: pa.Table, answered: pa.Table, *, setting: int, workers: int, batch: int, in_whole_batches: bool
) -> Iterator[AnswerUnit]:
    """Yield units of the questions that have no answer yet, those first that have the longest references.

    Answers of about the same length are decoded together, and the last units are short.

    Args:
        wanted: clip_id, question and `length`, about how long the answer will be.
        answered: clip_id and question of the answers there are.
        setting: Which of the workers' settings they are answered with.
        workers: How many share the work.
        batch: Questions decoded together.
        in_whole_batches: Cut units of a multiple of `batch`. Otherwise they are of about the same size, as many for
            each worker, so that few questions are shared by all.
    """
    todo = wanted.group_by(KEY, use_threads=False).aggregate([("length", "max")])
    todo = todo.join(answered.select(KEY), keys=KEY, join_type="left anti", use_threads=False)
    # By all that tells them apart, so that the same work is cut in the same way.
    todo = todo.sort_by([("length_max", "descending"), ("question", "ascending"), ("clip_id", "ascending")])
    size = min(max(-(-todo.num_rows // (UNITS_PER_WORKER * workers)), 1), MOST_QUESTIONS)
    size = -(-size // batch) * batch
    if not in_whole_batches:
        units_each = max(-(-todo.num_rows // (workers * size)), 1)
        size = max(-(-todo.num_rows // (workers * units_each)), 1)
    for first in range(0, todo.num_rows, size):
        part = todo.slice(first, size)
        clip_ids, questions = (tuple(part[name].to_pylist()) for name in KEY)
        name = hashlib.sha256(repr((clip_ids, questions)).encode()).hexdigest()[:16]
        yield AnswerUnit(name, setting, clip_ids, questions)


def with_lengths(table: pa.Table, references: pa.ChunkedArray) -> pa.Table:
    """Return clip_id and question beside the mean number of characters of their references."""
    lists = references.combine_chunks()
    rows = pa.table({"row": pc.list_parent_indices(lists), "length": pc.utf8_length(pc.list_flatten(lists))})
    means = rows.group_by("row", use_threads=False).aggregate([("length", "mean")]).sort_by("row")
    return table.select(KEY).append_column("length", means["length_mean"])
