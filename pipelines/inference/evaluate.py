"""`salmonn evaluate`: held-out questions, answered from cached features by workers on Ray, and scored."""

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from pipelines import storage
from pipelines.cache.recipe import Recipe
from pipelines.inference.answer_table import HEARD, OTHER, OWN, SILENCE, TaskAnswers, by_test_set
from pipelines.inference.answering import answer
from pipelines.inference.answers import SILENCE as SILENT_CLIP
from pipelines.inference.answers import DecodeSettings
from pipelines.inference.config import EvaluateConfig
from pipelines.inference.engines.choice import engine_name
from pipelines.inference.held_out import answers_to, open_held_out, with_clips, with_full_paths
from pipelines.inference.questions import Questions
from pipelines.inference.report import EvaluationReport, TaskReport, print_scores, write_report
from pipelines.inference.scoring.answers import TaskScores
from pipelines.inference.scoring.scores import score_task
from pipelines.interface.progress import Progress
from pipelines.runs.evaluations import EVALUATION, PAGE

OTHER_SEED = 0
"""Of the circle in which clips change places: everywhere the same, so that the same answers serve again."""


def evaluate(config: EvaluateConfig, progress: Progress | None = None) -> list[TaskScores]:
    """Answer what was not answered before, score all, write the report, and return the scores of each task.

    Raises:
        UserError: If nothing is selected, the cache has another recipe than the run learnt from, the LLM is another, or
            another job answers for this run.
        JobIncompleteError: If questions stay without an answer; the answers there are stay.
    """
    config = with_full_paths(config)  # workers run in folders of their own
    progress = progress or Progress()
    with progress.opening("evaluate: looking at run, examples and answers"):
        model, questions = open_held_out(config)
        engine = engine_name(config.engine, config.engine_python, model.spec.dtype)
    model = replace(model, whisper=config.whisper, beats=config.beats, engine_python=config.engine_python)
    clips = {OWN: questions.table["clip_id"].combine_chunks()}
    if config.check_heard:
        clips[SILENCE] = pa.array([SILENT_CLIP] * len(questions), pa.string())
        clips[OTHER] = questions.of_other_clips(OTHER_SEED)
    wanted = pa.concat_tables([with_clips(questions, heard) for heard in clips.values()])
    settings = DecodeSettings(
        num_beams=config.num_beams,
        max_new_tokens=config.max_new_tokens,
        lora_scaling=config.lora_scaling,
        engine=engine,
    )
    (answers,) = answer(config, model, [settings], wanted, progress)
    table = _joined(questions, clips, answers)
    report = EvaluationReport(
        run=config.run,
        step=model.step,
        splits=tuple(config.splits),
        settings=settings,
        questions=len(questions),
        examples=questions.num_examples,
        missing=questions.missing,
        tasks=tuple(map(_score, by_test_set(table))),
    )
    out = config.out or evaluation_folder(config.run, config.splits)
    write_report(out, config, report, table)
    print_scores(report)
    print(f"{out}: report.md, scores.json, answers.parquet")
    _write_page(config, out, report, table, recipe=model.spec.recipe, progress=progress)
    return [task.own for task in report.tasks]


def _write_page(
    config: EvaluateConfig, out: str, report: EvaluationReport, answers: pa.Table, *, recipe: Recipe, progress: Progress
) -> None:
    uri = storage.join(out, PAGE)
    if not config.page_examples:
        if storage.file_exists(uri):
            storage.delete_file(uri)  # it shows what was answered before
        return
    from pipelines.inference.page.page import write_evaluation_page  # which decodes with PyTorch

    write_evaluation_page(
        out,
        report,
        answers,
        manifest=config.manifest,
        recipe=recipe,
        most=config.page_examples,
        progress=progress,
    )
    print(f"page: {uri}")


def evaluation_folder(run: str, splits: Sequence[str]) -> str:
    """Return where a run's scores on some splits are written by default."""
    return storage.join(run, EVALUATION, "+".join(splits) or "all")


def _joined(questions: Questions, clips: dict[str, pa.Array], answers: pa.Table) -> pa.Table:
    """Return the questions beside their answers: of each column the clips that were heard for it."""
    table = questions.table
    for column, clip_ids in clips.items():
        given = answers_to(questions, clip_ids, answers)
        table = table.append_column(column, given["answer"])
        if column == OWN:
            table = table.append_column("tokens", given["tokens"]).append_column("seconds", given["seconds"])
    return table


def _score(part: TaskAnswers) -> TaskReport:
    scores = {
        column: score_task(part.task, answered, test_set=part.test_set)
        for column in HEARD
        if (answered := part.heard(column))
    }
    return TaskReport(own=scores[OWN], silence=scores.get(SILENCE), other=scores.get(OTHER))
