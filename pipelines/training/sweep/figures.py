"""Pictures of a sweep: scores against each key, and the trials' curves."""

from collections.abc import Collection, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from pipelines.interface.figures import (
    ACCENT,
    SERIES,
    SOFT,
    STYLE,
    Picture,
    as_picture,
    draw_score_axis,
    name_series,
)

KEYS_IN_A_ROW = 3
MARK_GAP = 0.09
"""An axis is marked at its points' values where each is so far from the next, in parts of the whole."""


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
    """Return where values are on a horizontal axis, and mark it with them if there is room."""
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
