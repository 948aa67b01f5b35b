"""Small pictures side by side, each with lines over the same kind of axis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.interface.figures import (
    ACCENT,
    SERIES,
    SOFT,
    STYLE,
    FloatArray,
    Picture,
    as_picture,
    begin_at_zero,
    name_series,
)

PANELS_IN_A_ROW = 3


@dataclass(frozen=True)
class Line:
    """Numbers [N] over where they are, NaN where there is none, and where their 95 % intervals begin and end."""

    across: Sequence[float]
    values: FloatArray
    low: FloatArray | None = None
    high: FloatArray | None = None


@dataclass(frozen=True)
class Panel:
    """Lines by their names, from 0 on; a single line goes without its name."""

    title: str
    lines: Mapping[str, Line]


def draw_panels(panels: Sequence[Panel], *, across: str, caption: str, marks: Sequence[float] | None = None) -> Picture:
    """Draw panels, three in a row.

    Args:
        panels: One or more.
        across: What the horizontal axes show.
        caption: The line below the picture.
        marks: What is marked on the horizontal axes; None: round numbers.
    """
    rows, columns = -(-len(panels) // PANELS_IN_A_ROW), min(len(panels), PANELS_IN_A_ROW)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 0.3 + 2.9 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        for axis, panel in zip(axes.flat, panels, strict=False):
            _draw_panel(axis, panel)
            axis.set_xlabel(across)
            if marks is not None:
                axis.set_xticks(marks, [f"{mark:g}" for mark in marks])
        return as_picture(figure, caption)


def _draw_panel(axis: Axes, panel: Panel) -> None:
    for place, line in enumerate(panel.lines.values()):
        order_N = np.argsort(line.across)
        across_N = np.asarray(line.across, np.float64)[order_N]
        colour = SERIES[place] if place < len(SERIES) else SOFT
        axis.plot(across_N, line.values[order_N], color=colour, marker="o", markersize=4)
        if line.low is not None and line.high is not None:
            axis.fill_between(across_N, line.low[order_N], line.high[order_N], color=ACCENT, alpha=0.15, linewidth=0)
    if len(panel.lines) > 1:
        name_series(axis, list(panel.lines))
    axis.grid(axis="y", color="#e2e8f0", linewidth=0.8)
    axis.set_title(panel.title, parse_math=False)
    begin_at_zero(axis)
