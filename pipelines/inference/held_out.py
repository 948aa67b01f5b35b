"""Held-out questions on both sides of answering: opened beside the model that answers, then joined with the answers."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import pyarrow as pa

from encoders.features import is_file
from llm.settings import is_hub_name
from pipelines import storage
from pipelines.cache.clip_index import ClipIndex
from pipelines.inference.answer_table import by_test_set, test_sets
from pipelines.inference.answering import Model
from pipelines.inference.config import AnsweringConfig
from pipelines.inference.questions import KEY, Questions, load_questions
from pipelines.inference.scoring.answers import TaskScores
from pipelines.inference.scoring.scores import score_task
from pipelines.inference.units import with_lengths
from pipelines.runs.folder import find_checkpoint
from pipelines.runs.spec import RunSpec, identified, require_heard

PATHS = ("run", "manifest", "cache", "out", "llm", "whisper", "beats", "engine_python")
ConfigT = TypeVar("ConfigT", bound=AnsweringConfig)


def with_full_paths(config: ConfigT) -> ConfigT:
    """Return the config with paths that mean the same in every folder."""
    given = {name: getattr(config, name, "") for name in PATHS}
    names = {"llm": is_hub_name(given["llm"]) or given["llm"] == "tiny"}
    names |= {encoder: not is_file(given[encoder]) for encoder in ("whisper", "beats")}
    names["engine_python"] = "/" not in given["engine_python"]  # a command's name
    full: dict[str, Any] = {
        name: storage.full_path(path) for name, path in given.items() if path and not names.get(name)
    }
    return replace(config, **full)


def open_held_out(config: AnsweringConfig) -> tuple[Model, Questions]:
    """Return the checkpoint that answers, and the questions that are selected.

    Raises:
        UserError: If nothing is selected, the cache has another recipe than the run learnt from, or the LLM is another.
    """
    index = ClipIndex(config.cache)
    spec = identified(RunSpec.read(config.run), config.run, llm=config.llm)
    require_heard(spec, index.recipe, run=config.run, cache=config.cache)
    questions = load_questions(
        config.manifest,
        index,
        splits=config.splits,
        tasks=config.tasks,
        max_missing_fraction=config.max_missing_fraction,
    )
    return Model(spec, find_checkpoint(config.run, config.checkpoint)), questions


def with_clips(questions: Questions, clip_ids: pa.Array) -> pa.Table:
    """Return what is to be answered where these clips are heard; rows without one are left out."""
    table = with_lengths(questions.table, questions.table["references"])
    return table.set_column(0, "clip_id", clip_ids).filter(clip_ids.is_valid())


def answers_to(questions: Questions, clip_ids: pa.Array, answers: pa.Table) -> pa.Table:
    """Return answer, tokens and seconds of each question, in their order, where these clips were heard."""
    asked = pa.table(
        {"row": range(len(questions)), "clip_id": clip_ids, "question": questions.table["question"].combine_chunks()}
    )
    joined = asked.join(answers, keys=KEY, join_type="left outer").sort_by("row")
    return joined.select(["answer", "tokens", "seconds"])


def each_test_set(questions: Questions) -> Iterator[tuple[str, str, pa.Array]]:
    """Yield task, name and rows (a mask) of each test set, which is a task's examples in a corpus's split."""
    for one, mask in test_sets(questions.table):
        yield one["task"], f"{one['corpus']} {one['split']}", mask


def score_test_sets(questions: Questions, given: Mapping[str, pa.Table]) -> Iterator[dict[str, TaskScores]]:
    """Yield for each test set the scores of each of the `given` answers; those that answer none of it have no scores.

    Args:
        questions: What was asked.
        given: Name -> answers as from `answers_to`.
    """
    table = questions.table
    for way, answers in given.items():
        table = table.append_column(way, answers["answer"])
    for part in by_test_set(table):
        answered = {way: part.heard(way) for way in given}
        yield {way: score_task(part.task, items, test_set=part.test_set) for way, items in answered.items() if items}
