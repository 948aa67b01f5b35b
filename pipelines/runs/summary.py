"""`salmonn runs list` and `salmonn runs compare`: what the runs of a folder came to, and where their configs differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import matplotlib
import numpy as np
import yaml
from matplotlib.figure import Figure
from omegaconf import MISSING
from rich.table import Table

from pipelines import storage
from pipelines.errors import MissingError, UserError
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
from pipelines.interface.terminal import print_table
from pipelines.runs.folder import best_checkpoint, complete_steps
from pipelines.runs.metrics import read_metrics

CONFIG = "config.yaml"


@dataclass(frozen=True)
class RunsListConfig:
    runs: str = MISSING
    """[URI] Folder whose folders are runs."""


@dataclass(frozen=True)
class RunsCompareConfig:
    runs: list[str] = field(default_factory=list)
    """[URIs] Folders of two runs or more."""
    out: str = ""
    """[URI] HTML page to write, with the curves; empty: none."""


@dataclass(frozen=True)
class RunSummary:
    """How far a run is; numbers are None where it has none yet."""

    name: str
    step: int
    steps: int | None
    """None of a run that was imported."""
    loss: float | None
    valid_loss: float | None
    best_step: int | None
    best_valid_loss: float | None
    checkpoints: int
    alarms: int

    def cells(self) -> list[str]:
        """Return the row of a table under `COLUMNS`."""
        best = f"{_number(self.best_valid_loss)} at {self.best_step}" if self.best_step is not None else ""
        numbers = [_number(self.loss), _number(self.valid_loss), best, str(self.checkpoints), str(self.alarms)]
        steps = "" if self.steps is None else f"/{self.steps}"
        return [self.name, f"{self.step}{steps}", *numbers]


COLUMNS = ("run", "step", "loss", "held-out loss", "lowest held-out", "checkpoints", "alarms")


def runs_list(config: RunsListConfig) -> list[RunSummary]:
    """Print a line per run of a folder.

    Raises:
        MissingError: If no folder in it is a run.
    """
    folders = [storage.join(config.runs, name) for name in storage.list_folders(config.runs)]
    runs = [folder for folder in folders if storage.file_exists(storage.join(folder, CONFIG))]
    if not runs:
        raise MissingError(f"{config.runs}: no folder in it is a run (none holds {CONFIG})")
    summaries = [summarise(run) for run in runs]
    _print_table(COLUMNS, [summary.cells() for summary in summaries])
    return summaries


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
    differences = config_differences([_flat(read_config(run)) for run in config.runs])
    _print_table(COLUMNS, rows)
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


def summarise(run: str) -> RunSummary:
    """Read what a run came to; raises as `read_config`."""
    config, lines, best = read_config(run), read_metrics(run), best_checkpoint(run)
    valid_losses = [line["valid_loss"] for line in lines if "valid_loss" in line]
    return RunSummary(
        name=run.partition("?")[0].rstrip("/").rpartition("/")[2],
        step=lines[-1]["step"] if lines else 0,
        steps=config.get("steps"),
        loss=lines[-1]["loss"] if lines else None,
        valid_loss=valid_losses[-1] if valid_losses else None,
        best_step=best[0] if best else None,
        best_valid_loss=best[1] if best else None,
        checkpoints=len(complete_steps(run)),
        alarms=sum(len(line.get("alarms", ())) for line in lines),
    )


def read_config(run: str) -> dict[str, Any]:
    """Read a run's resolved config.

    Raises:
        MissingError: If the folder is no run.
    """
    uri = storage.join(run, CONFIG)
    if not storage.file_exists(uri):
        raise MissingError(f"{run}: no run there ({CONFIG} is missing)")
    config: dict[str, Any] = yaml.safe_load(storage.read_bytes(uri)) or {}
    return config


def config_differences(configs: list[dict[str, str]]) -> list[list[str]]:
    """Return the keys whose values are not the same everywhere, each with all the values."""
    keys = sorted({key for config in configs for key in config})
    rows = [[key, *(config.get(key, "") for config in configs)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in config.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": str(value)}
    return found


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _print_table(columns: tuple[str, ...], rows: list[list[str]]) -> None:
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    print_table(table)


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
