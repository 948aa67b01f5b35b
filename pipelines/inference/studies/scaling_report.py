"""What a study of LoRA's scaling leaves: scaling.json, a page with its pictures, and a table on the terminal."""

import json
import math
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from rich.table import Table

from pipelines import storage
from pipelines.inference.scoring.answers import TaskScores
from pipelines.interface.figures import FloatArray, Picture
from pipelines.interface.page import Section, Tile, write_report
from pipelines.interface.panels import Line, Panel, draw_panels
from pipelines.interface.terminal import print_table

EMPTY, TOKENS = "empty answers", "tokens per answer"
ACROSS = "LoRA scaling (alpha/rank)"


@dataclass(frozen=True)
class ScaledScores:
    """What a test set's answers come to with one scaling."""

    scores: TaskScores
    empty_fraction: float
    mean_tokens: float
    """[tokens] Of an answer, without its end token."""


@dataclass(frozen=True, kw_only=True)
class ScalingReport:
    """What a study found."""

    run: str
    step: int
    splits: tuple[str, ...]
    num_beams: int
    max_new_tokens: int
    questions: int
    examples: int
    missing: int
    """Examples that are left out because the cache lacks their clips."""
    own_scaling: float
    """[alpha/rank] The run's."""
    scalings: tuple[float, ...]
    """[alpha/rank] The scalings that were asked for."""
    factors: tuple[float, ...]
    """The same as `lora_scaling` of evaluate."""
    test_sets: tuple[tuple[ScaledScores, ...], ...]
    """Of each test set what came with each scaling."""


def write_scaling(out: str, report: ScalingReport) -> None:
    """Write scaling.json and scaling.html."""
    storage.write_bytes(storage.join(out, "scaling.json"), json.dumps(asdict(report), indent=2).encode())
    write_report(
        storage.join(out, "scaling.html"),
        title="Answers over LoRA's scaling",
        lead=f"Checkpoint {report.step:,} of {report.run} answers the same questions with LoRA scaled up and down: at "
        f"{report.own_scaling:g} as `evaluate` lets it answer, at 0 as the bare LLM.",
        tiles=_tiles(report),
        sections=[
            Section("How well it answers", pictures=[_draw_scores(report)]),
            Section("What the answers look like", pictures=[_draw_shape(report)]),
            Section("All numbers", columns=_columns(report), rows=[*_rows(report)]),
        ],
        footer=shlex.join(sys.argv),
    )


def _draw_scores(report: ScalingReport) -> Picture:
    panels = [
        Panel(f"{task}, {test_set}: {first}", {first: _line(report.scalings, points)})
        for task, test_set, first, points in map(_names, report.test_sets)
    ]
    caption = "The first score of each task on each test set, with its 95 % interval."
    return draw_panels(panels, across=ACROSS, marks=report.scalings, caption=caption)


def _draw_shape(report: ScalingReport) -> Picture:
    panels = []
    for number, measure in enumerate((EMPTY, TOKENS)):
        lines = {
            f"{task}, {test_set}": Line(report.scalings, np.array(_shape(points)[number]))
            for task, test_set, _, points in map(_names, report.test_sets)
        }
        panels.append(Panel(measure, lines))
    caption = "Which share of the answers is empty, and how long an answer is."
    return draw_panels(panels, across=ACROSS, marks=report.scalings, caption=caption)


def print_scaling(report: ScalingReport) -> None:
    """Print every number of every scaling as a table."""
    table = Table(*_columns(report), box=None, pad_edge=False)
    for row in _rows(report):
        table.add_row(*row)
    print_table(table)


def _tiles(report: ScalingReport) -> list[Tile]:
    counts = {"questions": len(report.scalings) * report.questions, "scalings": len(report.scalings)}
    counts |= {"test sets": len(report.test_sets), "beams": report.num_beams, "tokens at most": report.max_new_tokens}
    counts |= {"examples without features": report.missing} if report.missing else {}
    return [Tile(name, f"{count:,}") for name, count in counts.items()]


def _names(points: Sequence[ScaledScores]) -> tuple[str, str, str, Sequence[ScaledScores]]:
    scores = points[0].scores
    return scores.task, scores.test_set, scores.scores[0].name, points


def _line(scalings: Sequence[float], points: Sequence[ScaledScores]) -> Line:
    firsts = [point.scores.scores[0] for point in points]
    values, low, high = ([getattr(first, name) for first in firsts] for name in ("value", "low", "high"))
    return Line(scalings, _numbers(values), _numbers(low), _numbers(high))


def _numbers(values: Sequence[float | None]) -> FloatArray:
    return np.array([math.nan if value is None else value for value in values], np.float64)


def _shape(points: Sequence[ScaledScores]) -> tuple[list[float], list[float]]:
    return [point.empty_fraction for point in points], [point.mean_tokens for point in points]


def _columns(report: ScalingReport) -> list[str]:
    return ["task", "test set", "score", *(f"{scaling:g}" for scaling in report.scalings)]


def _rows(report: ScalingReport) -> Iterator[list[str]]:
    """Yield a row for each number of each test set, a cell for each scaling."""
    for task, test_set, _, points in map(_names, report.test_sets):
        empty, tokens = _shape(points)
        # Not every score exists for the answers of every scaling.
        names = dict.fromkeys(score.name for point in points for score in point.scores.scores)
        for name in names:
            yield [task, test_set, name, *(_shown(point.scores.value(name)) for point in points)]
        yield [task, test_set, EMPTY, *map(_shown, empty)]
        yield [task, test_set, TOKENS, *(f"{count:.1f}" for count in tokens)]


def _shown(value: float | None) -> str:
    return "—" if value is None else f"{value:.3f}"
