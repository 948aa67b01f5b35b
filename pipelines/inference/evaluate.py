"""`salmonn evaluate`: decode held-out examples from their cached features and score the answers."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from llm.lora import set_lora_scaling
from pipelines import storage
from pipelines.batches.batch import read_batch
from pipelines.batches.example_set import load_examples
from pipelines.cache.reader import FeatureCache
from pipelines.inference.config import EvaluateConfig
from pipelines.inference.scoring.tasks import score
from pipelines.interface.config import save_config
from pipelines.interface.devices import local_device
from pipelines.interface.progress import Progress
from pipelines.runs.checkpoint import load_run
from pipelines.runs.spec import RunSpec


@dataclass(frozen=True)
class Prediction:
    """One answered example."""

    example_id: str
    clip_id: str
    task: str
    question: str
    reference: str
    answer: str


@dataclass(frozen=True)
class TaskScore:
    """A task's metrics over its held-out examples."""

    task: str
    examples: int
    metrics: dict[str, float]


def evaluate(config: EvaluateConfig, progress: Progress | None = None) -> list[TaskScore]:
    """Answer every selected example, write predictions.jsonl and metrics.json, print a table.

    Raises:
        UserError: If nothing is selected, or the cache has another recipe than the run learnt from.
    """
    torch.set_num_threads(config.threads)
    device = local_device(config.device)
    cache = FeatureCache(config.cache)
    RunSpec.read(config.run).recipe.require_same(cache.recipe, here=config.run, there=config.cache)
    examples = load_examples(
        config.manifest,
        cache,
        splits=config.splits,
        tasks=config.tasks,
        max_missing_fraction=config.max_missing_fraction,
    )
    run = load_run(config.run, checkpoint=config.checkpoint, device=device)
    set_lora_scaling(run.model.llm, config.lora_scaling)
    predictions: list[Prediction] = []
    with (progress or Progress()).phase("evaluate", unit="examples", total=len(examples)) as phase:
        for first in range(0, len(examples), config.batch_examples):
            indices = range(first, min(first + config.batch_examples, len(examples)))
            picked = [(0, index) for index in indices]
            batch = read_batch(examples, cache, picked, frames=run.spec.frames, prompt_seed=None)
            answers = run.model.generate(
                batch.to(device), num_beams=config.num_beams, max_new_tokens=config.max_new_tokens
            )
            for row, question, answer in zip(examples.rows(indices), batch.questions, answers, strict=True):
                about = (row["example_id"], row["clip_id"], row["task"], question, row["answer"])
                predictions.append(Prediction(*about, answer))
            phase.advance(len(indices))
    scores = score_tasks(predictions)
    _write(config, predictions, scores, step=run.step, num_missing=examples.missing.num_rows)
    _print_scores(scores)
    return scores


def evaluation_folder(run: str, splits: Sequence[str]) -> str:
    """Return where a run's answers to some splits are written by default."""
    return storage.join(run, "evaluation", "+".join(splits) or "all")


def score_tasks(predictions: list[Prediction]) -> list[TaskScore]:
    """Score each task's predictions, tasks in alphabetical order."""
    by_task: dict[str, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        by_task[prediction.task].append(prediction)
    return [
        TaskScore(task, len(found), score(task, [p.reference for p in found], [p.answer for p in found]))
        for task, found in sorted(by_task.items())
    ]


def _write(
    config: EvaluateConfig, predictions: list[Prediction], scores: list[TaskScore], *, step: int, num_missing: int
) -> None:
    out = config.out or evaluation_folder(config.run, config.splits)
    lines = "".join(json.dumps(vars(prediction), ensure_ascii=False) + "\n" for prediction in predictions)
    storage.write_bytes(storage.join(out, "predictions.jsonl"), lines.encode())
    metrics = {"step": step, "missing_examples": num_missing, "tasks": [vars(task) for task in scores]}
    storage.write_bytes(storage.join(out, "metrics.json"), json.dumps(metrics, indent=2).encode())
    save_config(config, storage.join(out, "evaluate.yaml"))


def _print_scores(scores: list[TaskScore]) -> None:
    table = Table("task", "examples", "metric", "score", box=None, pad_edge=False)
    for task in scores:
        for metric, value in task.metrics.items():
            table.add_row(task.task, str(task.examples), metric, f"{value:.3f}")
    Console().print(table)
