"""`salmonn manifest plot`: how long a manifest's clips are by corpus, and the hours of each task, as a picture."""

import base64
import io
from collections import defaultdict
from typing import Any

import matplotlib
import numpy as np
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from encoders.audio import CLIP_SECONDS
from pipelines import storage
from pipelines.errors import UserError
from pipelines.interface.figures import ACCENT, SOFT, STYLE, Picture
from pipelines.interface.page import Section, Tile, write_report
from pipelines.interface.words import counted
from pipelines.manifest.tables import CLIPS, read_batches
from pipelines.manifest.tools.config import ManifestPlotConfig
from pipelines.manifest.tools.info import ManifestSummary, TaskSummary, summarise

EDGES = np.linspace(0, CLIP_SECONDS, 61)
CAPTION = (
    "Left: clips by length, each corpus to its own scale, the line at its median. Right: hours of each task's clips."
)

Integers = np.ndarray[Any, np.dtype[np.int64]]


def manifest_plot(config: ManifestPlotConfig) -> None:
    """Draw the manifest.

    Raises:
        FileNotFoundError: If there is no manifest.
        UserError: If it holds no examples, or a table lacks a column.
    """
    summary = summarise(config.manifest)
    if not summary.examples:
        raise UserError(f"{config.manifest}: the manifest holds no examples")
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "manifest"}):
        figure = _draw(summary, _lengths(config.manifest))
        if config.suffix == "html":
            _write_page(config, summary, figure)
        else:
            metadata = {"Date": None} if config.suffix == "svg" else {}
            with storage.staged_file(config.out) as path:
                figure.savefig(path, format=config.suffix, dpi=150, metadata=metadata)
    print(
        f"{config.out}: {counted(summary.clips, 'clip')}, {counted(summary.examples, 'example')}, "
        f"{_hours(summary.hours)}"
    )


def _lengths(manifest: str) -> dict[str, Integers]:
    """Return corpus -> number of clips between each two of `EDGES`; clips of unknown length are left out."""
    counts: dict[str, Integers] = defaultdict(lambda: np.zeros(len(EDGES) - 1, np.int64))
    for batch in read_batches(manifest, CLIPS, ["corpus", "seconds"]):
        for corpus in pc.unique(batch["corpus"]).to_pylist():
            seconds = pc.drop_null(batch["seconds"].filter(pc.equal(batch["corpus"], corpus)))
            counts[corpus] += np.histogram(seconds.to_numpy(), EDGES)[0]
    return dict(sorted(counts.items()))


def _draw(summary: ManifestSummary, lengths: dict[str, Integers]) -> Figure:
    tasks = sorted({row.task for row in summary.tasks}, key=lambda task: (sum(_task_hours(summary.tasks, task)), task))
    figure = Figure(figsize=(11.5, 1.6 + 0.75 * max(len(lengths), len(tasks), 2)), layout="constrained")
    title = f"{counted(summary.clips, 'clip')} · {counted(summary.examples, 'example')} · {_hours(summary.hours)}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=13)
    (left, right), *_ = figure.subfigures(1, 2, squeeze=False, wspace=0.04)
    _draw_lengths(list(left.subplots(len(lengths), 1, sharex=True, squeeze=False)[:, 0]), lengths)
    _draw_tasks(right.subplots(), summary.tasks, tasks)
    return figure


def _draw_lengths(axes: list[Axes], lengths: dict[str, Integers]) -> None:
    for axis, (corpus, counts) in zip(axes, lengths.items(), strict=True):
        total = int(counts.sum())
        axis.stairs(counts, EDGES, fill=True, color=ACCENT, alpha=0.85)
        if total:
            median = EDGES[np.searchsorted(np.cumsum(counts), total / 2) + 1] - (EDGES[1] - EDGES[0]) / 2
            axis.axvline(median, color="#b45309", linewidth=1.2)
        axis.set(yticks=[], xlim=(0, CLIP_SECONDS), ylim=(0, None))
        axis.spines["left"].set_visible(False)
        label = f"{corpus}\n{total:,} clips"
        axis.set_ylabel(label, rotation=0, ha="right", va="center", labelpad=8, fontsize=9, parse_math=False)
        axis.tick_params(bottom=axis is axes[-1])
    axes[0].set_title("length of the clips")
    axes[-1].set_xlabel("seconds")


def _draw_tasks(axis: Axes, rows: list[TaskSummary], tasks: list[str]) -> None:
    labels = []
    for place, task in enumerate(tasks):
        training, held_out = _task_hours(rows, task)
        axis.barh(place, training, color=ACCENT, alpha=0.85, height=0.55)
        axis.barh(place, held_out, left=training, color=SOFT, height=0.55)
        axis.text(training + held_out, place, f"  {_hours(training + held_out)}", va="center", fontsize=9)
        labels.append(f"{task}\n{sum(row.examples for row in rows if row.task == task):,} examples")
    handles = [Patch(color=ACCENT, alpha=0.85, label="training"), Patch(color=SOFT, label="other splits")]
    axis.legend(handles=handles, frameon=False, loc="best", fontsize=9)
    axis.set_yticks(range(len(tasks)), labels, fontsize=9, parse_math=False)
    axis.set(title="hours by task", xlabel="hours", ylim=(-0.6, len(tasks) - 0.4))
    axis.margins(x=0.2)
    axis.tick_params(left=False)


def _task_hours(rows: list[TaskSummary], task: str) -> tuple[float, float]:
    """Return a task's hours in splits whose names begin with `train`, and in others."""
    training = sum(row.hours for row in rows if row.task == task and row.split.startswith("train"))
    return training, sum(row.hours for row in rows if row.task == task) - training


def _hours(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:.1f} min"
    return f"{hours:,.0f} h" if hours >= 100 else f"{hours:.1f} h"


def _write_page(config: ManifestPlotConfig, summary: ManifestSummary, figure: Figure) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    columns = ("corpus", "split", "task", "clips", "examples", "hours")
    rows = [
        (row.corpus, row.split, row.task, f"{row.clips:,}", f"{row.examples:,}", f"{row.hours:,.3f}")
        for row in summary.tasks
    ]
    tiles = [
        Tile("clips", f"{summary.clips:,}"),
        Tile("examples", f"{summary.examples:,}"),
        Tile("of audio", _hours(summary.hours)),
        Tile("clips of unknown length", f"{summary.unknown_lengths:,}"),
    ]
    pictures = [Picture(CAPTION, base64.b64encode(picture.getvalue()).decode())]
    write_report(
        config.out,
        title="Manifest",
        lead=config.manifest,
        tiles=tiles,
        sections=[
            Section("Lengths and hours", pictures=pictures),
            Section("By corpus, split and task", columns=columns, rows=rows),
        ],
        footer="A clip counts once in each row, however many examples it has there.",
    )
