"""`salmonn runs compare`: runs side by side, as a table and as a page with their curves."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from pipelines.errors import UserError
from pipelines.interface.figures import (
    SERIES,
    SOFT,
    STYLE,
    Picture,
    as_picture,
    draw_score_axis,
    draw_smoothed,
    name_series,
)
from pipelines.interface.page import Section, Tile, write_report
from pipelines.runs import seeds
from pipelines.runs.config import RunsCompareConfig
from pipelines.runs.metrics import read_metrics
from pipelines.runs.summary import (
    COLUMNS,
    RunSummary,
    _number,
    _print_table,
    config_differences,
    flat,
    read_config,
    seed_rows,
    summarise,
)


def runs_compare(config: RunsCompareConfig) -> list[list[str]]:
    """Print what runs came to and the keys in which they differ, a column per run; write a page with their curves.

    Raises:
        UserError: If there are not two runs at least.
        MissingError: If one of the folders is no run.
    """
    if len(config.runs) < 2:
        raise UserError(f"runs={config.runs}: two runs are needed at least")
    summaries = [summarise(run) for run in config.runs]
    if len({summary.name for summary in summaries}) < len(summaries):
        summaries = [replace(summary, name=run) for summary, run in zip(summaries, config.runs, strict=True)]
    names = [summary.name for summary in summaries]
    rows = [summary.cells() for summary in summaries]
    numbers, spread = _number_rows(summaries), seed_rows(config.runs, summaries)
    differences = config_differences([flat(read_config(run)) for run in config.runs])
    _print_table(COLUMNS, rows)
    if numbers:
        _print_table(("number", *names), numbers)
    if spread:
        _print_table(seeds.COLUMNS, spread)
    _print_table(("key", *names), differences)
    if config.out:
        lines = dict(zip(names, map(read_metrics, config.runs), strict=True))
        caption = "Losses as they were, faint, and their running means."
        curves = [draw_runs(lines, caption=caption)] if any(lines.values()) else []
        write_report(
            config.out,
            title="Runs side by side",
            lead="What the runs came to, the keys in which their configs differ, and their curves.",
            tiles=[Tile(f"loss of {summary.name}", _number(summary.loss)) for summary in summaries],
            sections=[
                Section("What they came to", columns=COLUMNS, rows=rows),
                *([Section("Losses by task, and scores", columns=("number", *names), rows=numbers)] if numbers else []),
                *([Section("How far seeds lie apart", columns=seeds.COLUMNS, rows=spread)] if spread else []),
                Section(
                    "Where their configs differ",
                    "" if differences else "Nowhere.",
                    columns=("key", *names),
                    rows=differences,
                ),
                Section("How they learnt", pictures=curves),
            ],
            footer="losses in nats per answer token",
        )
        print(f"report: {config.out}")
    return differences


def _number_rows(summaries: Sequence[RunSummary]) -> list[list[str]]:
    """Return a row per loss of a task and per score that any run has, with all the runs' numbers."""
    found = [summary.numbers() for summary in summaries]
    names = dict.fromkeys(name for numbers in found for name in numbers)
    shown = [name for name in names if name not in ("loss", "held-out loss", "lowest held-out")]
    return [[name, *(_number(numbers.get(name)) for numbers in found)] for name in shown]


def draw_runs(runs: Mapping[str, Sequence[Mapping[str, Any]]], *, caption: str) -> Picture:
    """Draw the losses of runs over each other, of training and of held-out examples where there are any.

    Args:
        runs: Name -> lines of metrics.jsonl; the first run's is in front and the first ones' in colours.
        caption: The line below the picture.
    """
    titles = {"loss": "loss per answer token (nats)", "valid_loss": "the same on held-out examples"}
    found = {
        key: [[(line["step"], line[key]) for line in lines if key in line] for lines in runs.values()] for key in titles
    }
    shown = [key for key, points in found.items() if any(points)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 3.8), layout="constrained")
        for axis, key in zip(figure.subplots(1, len(shown), squeeze=False).flat, shown, strict=True):
            for place, points in reversed(list(enumerate(found[key]))):
                steps, losses = np.array(points, np.float64).reshape(-1, 2).T
                draw_smoothed(axis, steps, losses, color=SERIES[place] if place < len(SERIES) else SOFT, label="")
            axis.set(title=titles[key], xlabel="step")
            draw_score_axis(axis, [loss for points in found[key] for _, loss in points])
        name_series(figure.axes[0], list(runs))
        return as_picture(figure, caption)
