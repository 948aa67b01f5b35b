"""The look that all pictures share, and the parts that several of them are made of."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

FloatArray = np.ndarray[Any, np.dtype[np.float64]]
INK, ACCENT, SOFT, ALARM = "#1d2733", "#0f766e", "#94a3b8", "#b45309"
SERIES = (ACCENT, ALARM, "#6d28d9", "#be123c", "#0369a1", "#4d7c0f")
"""Colours of lines to tell apart; further lines are `SOFT`."""
LOG_SCORES, MARKED_SCORES = 4.0, 1000.0
"""Ratios of highest to lowest score from which on the axis is logarithmic, and up to which 2 and 5 are marked on it."""
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
class Picture:
    """A PNG and the line below it."""

    caption: str
    png_base64: str


def as_picture(figure: Figure, caption: str) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140)
    return Picture(caption, base64.b64encode(buffer.getvalue()).decode())


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
        return as_picture(figure, caption)


def draw_smoothed(axis: Axes, steps: FloatArray, values: FloatArray, *, color: Any, label: str) -> None:
    """Draw values and, where there are many, make them faint below their running mean; NaN is left out."""
    found = ~np.isnan(values)
    steps, values = steps[found], values[found]
    width = max(1, len(values) // 40)
    axis.plot(steps, values, color=color, alpha=0.25 if width > 1 else 0.0, linewidth=1.0)
    shares = np.full(width, 1 / width)
    means, middles = (np.convolve(each, shares, "valid") if len(each) else each for each in (values, steps))
    axis.plot(middles, means, color=color, label=label, marker="" if len(values) > 30 else ".")


def begin_at_zero(axis: Axes) -> None:
    """Let the upright axis of what is drawn begin at 0, with room above the highest line."""
    axis.set_ylim(0, 1.05 * axis.get_ylim()[1])


def draw_score_axis(axis: Axes, scores: Sequence[float]) -> None:
    """Draw lines to read scores off; far apart ones, as of trials that diverged, on a logarithmic axis."""
    axis.grid(axis="y", color="#e2e8f0", linewidth=0.8)
    axis.set_axisbelow(True)
    if min(scores) > 0 and max(scores) > LOG_SCORES * min(scores):
        plain = FuncFormatter(lambda value, _: f"{value:g}")
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(plain)
        axis.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axis.yaxis.set_minor_formatter(plain if max(scores) < MARKED_SCORES * min(scores) else NullFormatter())


def name_series(axis: Axes, names: Sequence[str]) -> None:
    """Say which line in the colours of `SERIES` is whose."""
    shown = names[: len(SERIES)]
    lines = [Line2D([], [], color=colour) for colour, _ in zip(SERIES, shown, strict=False)]
    for text in axis.legend(lines, shown, frameon=False, fontsize=9).get_texts():
        text.set_parse_math(False)
