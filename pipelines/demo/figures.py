"""The pictures of the demo's report."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from pipelines.interface.figures import (
    ACCENT,
    INK,
    STYLE,
    FloatArray,
    Picture,
    as_picture,
    begin_at_zero,
)


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
        left.set(title="loss per answer token (nats)", xlabel="step")
        begin_at_zero(left)
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
