"""A self-contained HTML page of numbers, tables and pictures: no script, nothing loaded from elsewhere."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from pipelines import storage
from pipelines.interface.figures import (
    ACCENT,
    ALARM,
    INK,
    SERIES,
    SOFT,
    STYLE,
    FloatArray,
    Picture,
    as_picture,
    draw_score_axis,
    draw_smoothed,
    name_series,
)

KEYS_IN_A_ROW = 3
MARK_GAP = 0.09
"""An axis is marked at its points' values where each is so far from the next, in parts of the whole."""


@dataclass(frozen=True)
class Tile:
    """One number and what it counts."""

    name: str
    value: str


@dataclass(frozen=True)
class Section:
    title: str
    text: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    pictures: Sequence[Picture] = field(default_factory=tuple)


def write_report(
    uri: str, *, title: str, lead: str, tiles: Sequence[Tile], sections: Sequence[Section], footer: str
) -> None:
    """Write the page; all texts are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipelines.interface"), autoescape=True, trim_blocks=True
    )
    page = environment.get_template("report.html").render(
        title=title, lead=lead, tiles=tiles, sections=sections, footer=footer
    )
    storage.write_bytes(uri, page.encode())


def draw_streams(
    waves: Mapping[str, FloatArray],
    streams: Mapping[str, Mapping[str, FloatArray]],
    *,
    sample_rate_hz: int,
    caption: str,
) -> Picture:
    """Draw clips side by side: the wave above, each stream's frames as a heat map below, over the clip's length.

    Args:
        waves: Title -> wave [samples].
        streams: Title -> stream -> frames [T, C] at 50 Hz.
        sample_rate_hz: Of the waves.
        caption: The line below the picture.
    """
    names = list(next(iter(streams.values())))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 1.4 + 1.9 * len(names)), layout="constrained")
        axes = figure.subplots(
            1 + len(names), len(waves), squeeze=False, sharex="col", height_ratios=[1.0] + [1.6] * len(names)
        )
        for column, (title, wave) in enumerate(waves.items()):
            seconds = len(wave) / sample_rate_hz
            top = axes[0][column]
            top.plot(np.linspace(0, seconds, len(wave)), wave, color=INK, linewidth=0.5)
            top.set(title=title, xlim=(0, seconds), yticks=[])
            for row, name in enumerate(names, start=1):
                frames = streams[title][name][: max(1, int(seconds * 50))]
                scaled = (frames - frames.mean(axis=0)) / (frames.std(axis=0) + 1e-6)
                axis = axes[row][column]
                extent = (0.0, len(frames) / 50, 0.0, float(frames.shape[1]))
                axis.imshow(scaled.T, aspect="auto", origin="lower", cmap="RdBu_r", vmin=-2.5, vmax=2.5, extent=extent)
                axis.set(ylabel=f"{name} channel" if column == 0 else "", yticks=[])
            axes[-1][column].set(xlabel="seconds")
        return as_picture(figure, caption)


def draw_curves(curves: Mapping[str, Sequence[Mapping[str, float]]], *, caption: str) -> Picture:
    """Draw loss and token accuracy over the steps of one run after another (lines of metrics.jsonl)."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        first = 0.0
        for number, (name, lines) in enumerate(curves.items()):
            colour = [ACCENT, "#b45309", "#6d28d9"][number % 3]
            steps = [first + line["step"] for line in lines]
            left.plot(steps, [line["loss"] for line in lines], color=colour, label=name)
            right.plot(steps, [line["token_accuracy"] for line in lines], color=colour, label=name)
            first = steps[-1]
        left.set(title="loss per answer token (nats)", xlabel="step", ylim=(0, None))
        right.set(title="right answer tokens in training", xlabel="step", ylim=(0, 1.02))
        left.legend(frameon=False)
        return as_picture(figure, caption)


def draw_scores(scores: Mapping[str, tuple[float, float]], *, caption: str) -> Picture:
    """Draw held-out scores as bars with a mark at what chance would give (name -> (score, chance))."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 0.8 + 0.5 * len(scores)), layout="constrained")
        axis = figure.subplots()
        names = list(reversed(list(scores)))
        for place, (score, chance) in enumerate(scores[name] for name in names):
            axis.barh(place, score, color=ACCENT, height=0.6)
            axis.plot([chance, chance], [place - 0.38, place + 0.38], color="#b45309", linewidth=2)
            axis.text(score + 0.01, place, f"{100 * score:.0f} %", va="center")
        axis.set(xlim=(0, 1.08), yticks=range(len(scores)), yticklabels=names)
        axis.set(xlabel="share of right answers, held-out recordings (orange: chance)")
        return as_picture(figure, caption)


def draw_losses(lines: Sequence[Mapping[str, Any]], *, prefix: str, caption: str) -> Picture:
    """Draw losses, all together and task by task, and token accuracy, over the steps of lines of metrics.jsonl.

    Args:
        lines: Those that hold the numbers, one at least.
        prefix: Of the numbers' names: `valid_` for those of held-out examples; without one alarms are marked as well.
        caption: The line below the picture.
    """
    steps = np.array([line["step"] for line in lines], np.float64)
    tasks = sorted({task for line in lines for task in line[f"{prefix}loss_by_task"]})
    losses = np.array([line[f"{prefix}loss"] for line in lines], np.float64)
    palette = matplotlib.colormaps["tab20"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[2, 1])
        for number, task in enumerate(tasks if len(tasks) > 1 else ()):
            by_task = np.array([line[f"{prefix}loss_by_task"].get(task) for line in lines], np.float64)
            colour = palette((2 * number + number // 10) % 20)  # the strong colours before the pale ones
            draw_smoothed(left, steps, by_task, color=colour, label=task)
        draw_smoothed(left, steps, losses, color=INK, label="all")
        accuracies = np.array([line[f"{prefix}token_accuracy"] for line in lines], np.float64)
        draw_smoothed(right, steps, accuracies, color=INK, label="all")
        _mark_alarms(left, [line["step"] for line in lines if "alarms" in line and not prefix])
        is_wide = np.nanmax(losses, initial=0) > 20 * np.nanmin(losses, initial=np.inf)
        left.set(xlabel="step", **({"yscale": "log"} if is_wide else {"ylim": (0, None)}))
        left.set_title("loss per answer token (nats)", pad=16)
        right.set(xlabel="step", ylim=(0, 1.02))
        right.set_title("right answer tokens", pad=16)
        left.legend(frameon=False, fontsize=8, ncols=1 + len(tasks) // 7)
        return as_picture(figure, caption)


def _mark_alarms(axis: Axes, steps: Sequence[int]) -> None:
    """Draw a line at each alarm, and its number from 1 on where there is room."""
    first, last = axis.get_xlim()
    labelled = -np.inf
    for number, step in enumerate(steps, 1):
        axis.axvline(step, color=ALARM, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.7)
        if step - labelled > 0.03 * (last - first):
            axis.text(
                step, 1.0, str(number), transform=axis.get_xaxis_transform(), color=ALARM, ha="center", va="bottom"
            )
            labelled = step


def draw_step_parts(
    ends: FloatArray, seconds: Mapping[str, FloatArray], *, expected: float | None, caption: str
) -> Picture:
    """Draw what a step's time was made of while a run went on.

    Args:
        ends: The steps at which spans ended; the first began at 0.
        seconds: Part -> its seconds per step in each span.
        expected: The forecast of a step's seconds, drawn as a line; None draws none.
        caption: The line below the picture.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 3.2), layout="constrained")
        axis = figure.subplots()
        values = [np.concatenate([part[:1], part]) for part in seconds.values()]
        colours = [ALARM, ACCENT, "#5eead4", SOFT]
        axis.stackplot(
            np.concatenate([[0], ends]), values, labels=list(seconds), colors=colours, step="pre", alpha=0.85
        )
        if expected:
            axis.axhline(expected, color=INK, linestyle="--", linewidth=1.2, label="forecast")
        axis.set(title="seconds per step", xlabel="step", xlim=(0, ends[-1]), ylim=(0, None))
        handles, labels = axis.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], frameon=False, loc="outside right upper", fontsize=9)
        return as_picture(figure, caption)


def draw_scores_by_key(
    keys: Mapping[str, Sequence[float | str]],
    scores: Sequence[float],
    *,
    measure: str,
    cut: Sequence[bool],
    log_keys: Collection[str],
    caption: str,
) -> Picture:
    """Draw the scores of trials against each key that differed among them, the first trial's in colour.

    Args:
        keys: Key -> its value in every trial; texts stand side by side in the order in which they come.
        scores: Of every trial.
        measure: What the scores are.
        cut: Whether the trial was stopped early; it is drawn as a cross.
        log_keys: Keys drawn on a logarithmic axis.
        caption: The line below the picture.
    """
    rows = -(-len(keys) // KEYS_IN_A_ROW)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 0.4 + 2.7 * rows), layout="constrained")
        axes = figure.subplots(rows, min(len(keys), KEYS_IN_A_ROW), squeeze=False, sharey=True)
        for axis in axes.flat[len(keys) :]:
            axis.set_visible(False)
        for axis, (key, values) in zip(axes.flat, keys.items(), strict=False):
            places = _place_values(axis, values, log=key in log_keys)
            for place, (across, up) in reversed(list(enumerate(zip(places, scores, strict=True)))):
                colour = SOFT if place else ACCENT
                axis.plot(across, up, "x" if cut[place] else "o", color=colour, markersize=6 if place else 9)
            axis.set_xlabel(key, parse_math=False)
            draw_score_axis(axis, scores)
        for axis in axes[:, 0]:
            axis.set_ylabel(measure, parse_math=False)
        return as_picture(figure, caption)


def _place_values(axis: Axes, values: Sequence[float | str], *, log: bool) -> list[float]:
    """Return where values lie on a horizontal axis, and mark it with them if there is room."""
    axis.margins(x=0.12)
    numbers = [value for value in values if not isinstance(value, str)]
    if len(numbers) < len(values):
        names = list(dict.fromkeys(map(str, values)))
        axis.set_xticks(range(len(names)), names, parse_math=False)
        return [names.index(str(value)) for value in values]
    if log:
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter(NullFormatter())
    marks = np.unique(numbers)
    gaps = np.diff(np.log(marks) if log else marks)
    if len(marks) == 1 or gaps.min() >= MARK_GAP * gaps.sum():
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xticks(marks, [f"{mark:g}" for mark in marks])
    return numbers


def draw_trials(
    trials: Mapping[str, Sequence[tuple[int, float]]], *, measure: str, cut: Collection[str], caption: str
) -> Picture:
    """Draw the scores of trials over their steps, the first trial's in front and the first ones' in colours.

    Args:
        trials: Name -> (step, score) in order.
        measure: What the scores are.
        cut: Trials that were stopped early, which end in a cross.
        caption: The line below the picture.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 4.4), layout="constrained")
        axis = figure.subplots()
        for place, (name, points) in reversed(list(enumerate(trials.items()))):
            steps, scores = [step for step, _ in points], [score for _, score in points]
            colour = SERIES[place] if place < len(SERIES) else SOFT
            axis.plot(steps, scores, color=colour, linewidth=1.2 if place else 2.4, marker="o", markersize=3)
            if name in cut:
                axis.plot(steps[-1], scores[-1], color=colour, marker="x", markersize=9, markeredgewidth=2)
        name_series(axis, list(trials))
        axis.set_xlabel("step")
        axis.set_ylabel(measure, parse_math=False)
        draw_score_axis(axis, [score for points in trials.values() for _, score in points])
        return as_picture(figure, caption)
