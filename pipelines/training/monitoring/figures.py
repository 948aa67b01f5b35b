"""Pictures of one run: losses, and what a step's time is made of."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.interface.figures import (
    ACCENT,
    ALARM,
    INK,
    SOFT,
    STYLE,
    FloatArray,
    Picture,
    as_picture,
    begin_at_zero,
    draw_smoothed,
)
from pipelines.interface.panels import Line, Panel, draw_panels
from pipelines.runs.scores import ScoreLine


def draw_losses(lines: Sequence[Mapping[str, Any]], *, prefix: str, caption: str) -> Picture:
    """Draw losses, all together and task by task, and token accuracy, over the steps of lines of metrics.jsonl.

    Args:
        lines: Those that hold the numbers, one at least.
        prefix: Of the numbers' names: `valid_` for held-out examples; without one alarms are marked as well.
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
        left.set_xlabel("step")
        if is_wide:
            left.set_yscale("log")
        else:
            begin_at_zero(left)
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


def draw_scores(lines: Sequence[ScoreLine], *, caption: str) -> Picture:
    """Draw the first score of each test set over the steps, equal scores in one panel; one line or more."""
    firsts = {(line.task, line.test_set): line.score for line in reversed(lines)}
    by_score: dict[str, dict[str, list[ScoreLine]]] = {}
    for line in lines:
        if line.score == firsts[line.task, line.test_set]:
            by_score.setdefault(line.score, {}).setdefault(f"{line.task}, {line.test_set}", []).append(line)
    panels = [
        Panel(score, {name: _over_steps(found) for name, found in by_name.items()})
        for score, by_name in by_score.items()
    ]
    return draw_panels(panels, across="step", caption=caption)


def _over_steps(lines: Sequence[ScoreLine]) -> Line:
    return Line([line.step for line in lines], np.array([line.value for line in lines], np.float64))


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
