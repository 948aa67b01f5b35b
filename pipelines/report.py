"""A self-contained HTML page of numbers, tables and pictures: no script, nothing loaded from elsewhere."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines import storage

FloatArray = np.ndarray[Any, np.dtype[np.float64]]

INK, ACCENT, SOFT, ALARM = "#1d2733", "#0f766e", "#94a3b8", "#b45309"
STYLE: dict[Any, Any] = {
    "axes.edgecolor": "#cbd5e1",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "font.size": 10,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True)
class Tile:
    """One number and what it counts."""

    name: str
    value: str


@dataclass(frozen=True)
class Picture:
    """A PNG and the line below it."""

    caption: str
    png_base64: str


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
    environment = jinja2.Environment(loader=jinja2.PackageLoader("pipelines"), autoescape=True, trim_blocks=True)
    page = environment.get_template("report.html").render(
        title=title, lead=lead, tiles=tiles, sections=sections, footer=footer
    )
    storage.write_bytes(uri, page.encode())


def _picture(figure: Figure, caption: str) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140)
    return Picture(caption, base64.b64encode(buffer.getvalue()).decode())


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
        return _picture(figure, caption)


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
        return _picture(figure, caption)


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
        return _picture(figure, caption)


def draw_shares(parts: Mapping[str, float], *, caption: str) -> Picture:
    """Draw where the seconds went, one bar per part."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 0.8 + 0.36 * len(parts)), layout="constrained")
        axis = figure.subplots()
        for place, (_name, seconds) in enumerate(sorted(parts.items(), key=lambda part: part[1])):
            axis.barh(place, seconds, color=SOFT, height=0.6)
            axis.text(seconds, place, f" {seconds:.1f} s", va="center")
        names = [name for name, _ in sorted(parts.items(), key=lambda part: part[1])]
        axis.set(yticks=range(len(parts)), yticklabels=names, xlabel="seconds, all workers together")
        axis.margins(x=0.1)
        return _picture(figure, caption)


def draw_throughput(
    ended_seconds: FloatArray,
    audio_seconds: FloatArray,
    nbytes: FloatArray,
    *,
    expected: float | None,
    caption: str,
) -> Picture:
    """Draw speed over time from what was finished when, in up to 60 spans.

    Args:
        ended_seconds: Of each piece of work since the beginning.
        audio_seconds: Of each piece.
        nbytes: Of each piece.
        expected: The forecast in × real time, drawn as a line; None draws none.
        caption: The line below the picture.
    """
    edges = np.linspace(0, float(ended_seconds.max()), 1 + min(60, max(1, len(ended_seconds) // 4)))
    hours = edges / 3600 if edges[-1] > 7200 else edges
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 3.2), layout="constrained")
        for axis, values, title in zip(
            figure.subplots(1, 2), (audio_seconds, nbytes / 1e6), ("× real time", "MB/s of shards"), strict=True
        ):
            sums, _ = np.histogram(ended_seconds, edges, weights=values)
            axis.stairs(sums / np.diff(edges), hours, fill=True, color=ACCENT, alpha=0.8)
            if expected and title == "× real time":
                axis.axhline(expected, color="#b45309", label="forecast")
                axis.legend(frameon=False)
            axis.set(title=title, xlabel="hours" if edges[-1] > 7200 else "seconds", ylim=(0, None))
        return _picture(figure, caption)


def draw_losses(lines: Sequence[Mapping[str, Any]], *, prefix: str, caption: str) -> Picture:
    """Draw losses, all together and task by task, and token accuracy, over the steps of lines of metrics.jsonl.

    Args:
        lines: Those that hold the numbers, one at least; alarms in them are marked and numbered.
        prefix: Of the numbers' names: `valid_` for those of held-out examples.
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
            _draw_smoothed(left, steps, by_task, color=colour, label=task)
        _draw_smoothed(left, steps, losses, color=INK, label="all")
        accuracies = np.array([line[f"{prefix}token_accuracy"] for line in lines], np.float64)
        _draw_smoothed(right, steps, accuracies, color=INK, label="all")
        _mark_alarms(left, [line["step"] for line in lines if "alarms" in line])
        is_wide = np.nanmax(losses, initial=0) > 20 * np.nanmin(losses, initial=np.inf)
        left.set(xlabel="step", **({"yscale": "log"} if is_wide else {"ylim": (0, None)}))
        left.set_title("loss per answer token (nats)", pad=16)
        right.set(xlabel="step", ylim=(0, 1.02))
        right.set_title("right answer tokens", pad=16)
        left.legend(frameon=False, fontsize=8, ncols=1 + len(tasks) // 7)
        return _picture(figure, caption)


def _draw_smoothed(axis: Axes, steps: FloatArray, values: FloatArray, *, color: Any, label: str) -> None:
    """Draw values and, where there are many, make them faint below their running mean; NaN is left out."""
    found = ~np.isnan(values)
    steps, values = steps[found], values[found]
    width = max(1, len(values) // 40)
    axis.plot(steps, values, color=color, alpha=0.25 if width > 1 else 0.0, linewidth=1.0)
    shares = np.full(width, 1 / width)
    means, middles = (np.convolve(each, shares, "valid") if len(each) else each for each in (values, steps))
    axis.plot(middles, means, color=color, label=label, marker="" if len(values) > 30 else ".")


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
        return _picture(figure, caption)
