"""`page/index.html` of an evaluation: its tables, and its worst answers to listen to."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import storage
from pipelines.cache.recipe import Recipe
from pipelines.inference.answer_table import HEARD, OWN, by_test_set
from pipelines.inference.page.sound import Sound, write_sounds
from pipelines.inference.page.worst import worst_answers
from pipelines.inference.report import EvaluationReport, absent, describe, score_table
from pipelines.inference.scoring.paper import HEAD, NOTHING, cells
from pipelines.interface.page import Section, Tile, write_page
from pipelines.interface.progress import Progress
from pipelines.runs.evaluations import PAGE

TITLES = ("Answer", "Answer to silence", "Answer to another clip")
"""Of the columns of `HEARD`."""


@dataclass(frozen=True)
class Card:
    """An answer as the page shows it.

    Args:
        place: From 1 on, the worst first.
        value: Of the score by which answers are ordered.
        sound: To listen to.
        texts: (title, text) of recordings, question, references and answers.
    """

    place: int
    value: str
    sound: Sound
    texts: Sequence[tuple[str, str]]


def write_evaluation_page(
    out: str,
    report: EvaluationReport,
    answers: pa.Table,
    *,
    manifest: str,
    recipe: Recipe,
    most: int,
    progress: Progress,
) -> None:
    """Write the page and the sounds that it plays into `out`.

    Args:
        out: Folder of the evaluation.
        report: What was scored.
        answers: The table of `answers.parquet`.
        manifest: Where the recordings of the clips are named.
        recipe: How the clips are heard.
        most: Answers shown of each task and test set.
        progress: Where it is shown.

    Raises:
        OSError: If the page cannot be written. A recording that cannot be read is no error: its row says so.
    """
    worst = [worst_answers(part, most) for part in by_test_set(answers)]
    clip_ids = dict.fromkeys(row["clip_id"] for one in worst for row in one.rows)
    page = storage.join(out, PAGE)
    with progress.phase("page", unit="clips", total=len(clip_ids)) as phase:
        sounds = write_sounds(
            storage.join(storage.parent(page), "audio"), manifest, clip_ids, recipe=recipe, phase=phase
        )
    write_page(
        page,
        "answers.html",
        package="pipelines.inference.page",
        title=f"How {report.run.partition('?')[0].rpartition('/')[2]} answers",
        lead=describe(report),
        tiles=[
            Tile("questions", str(report.questions)),
            Tile("clips", str(pc.count_distinct(answers["clip_id"]).as_py())),
            Tile("tasks on test sets", str(len(report.tasks))),
            Tile("answers to listen to", str(sum(len(one.rows) for one in worst))),
        ],
        sections=_sections(report, answers),
        worst=[(one, [_card(place, row, sounds) for place, row in enumerate(one.rows, 1)]) for one in worst],
        footer=f"{report.run}, step {report.step}. Whatever this page shows is in its folder.",
    )


def _card(place: int, row: Mapping[str, Any], sounds: Mapping[str, Sound]) -> Card:
    value = NOTHING if math.isnan(row["value"]) else f"{row['value']:.3f}"
    texts = [
        ("Recording", ", ".join(row["recordings"])),
        ("Question", row["question"]),
        *(("Reference", text) for text in row["references"]),
    ]
    answers = zip(TITLES, HEARD, strict=True)
    texts += [(title, row[column]) for title, column in answers if row.get(column) is not None]
    return Card(place, value, sounds[row["clip_id"]], texts)


def _sections(report: EvaluationReport, answers: pa.Table) -> list[Section]:
    head, rows = score_table(report)
    heard = (
        "A model that hears does worse with silence or another clip in place of the clip. "
        if report.checks_heard
        else ""
    )
    return [
        Section(
            "Scores", " ".join([*absent(report), f"{heard}report.md says how each score was computed."]), head, rows
        ),
        Section(
            "Beside the paper",
            "Our scores beside what the paper publishes without and with its activation tuning, and beside the system "
            f"that it compares with. {NOTHING}: nothing was measured here, or nothing is published.",
            HEAD,
            [cells(row) for row in report.paper()],
        ),
        Section(
            "Corpora",
            f"Cut answers are as long as an answer may be, {report.settings.max_new_tokens} tokens.",
            ("corpus", "splits", "tasks", "clips", "questions", "empty answers", "tokens per answer", "cut answers"),
            [*_corpora(report, answers)],
        ),
    ]


def _corpora(report: EvaluationReport, answers: pa.Table) -> Iterator[list[str]]:
    for corpus in sorted(pc.unique(answers["corpus"]).to_pylist()):
        rows = answers.filter(pc.equal(answers["corpus"], corpus))
        empty = pc.sum(pc.equal(pc.utf8_trim_whitespace(rows[OWN]), "")).as_py()
        cut = pc.sum(pc.greater_equal(rows["tokens"], report.settings.max_new_tokens)).as_py()
        splits, tasks = (", ".join(sorted(pc.unique(rows[name]).to_pylist())) for name in ("split", "task"))
        counts = (pc.count_distinct(rows["clip_id"]).as_py(), rows.num_rows, empty)
        yield [corpus, splits, tasks, *map(str, counts), f"{pc.mean(rows['tokens']).as_py():.1f}", str(cut)]
