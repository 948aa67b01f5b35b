"""`salmonn runs list` and `salmonn runs compare`: what the runs of a folder came to, and where their configs differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from pipelines import storage
from pipelines.errors import MissingError
from pipelines.interface.config import read_saved_config
from pipelines.interface.terminal import print_table
from pipelines.runs import seeds
from pipelines.runs.config import RunsListConfig
from pipelines.runs.evaluations import read_scores
from pipelines.runs.folder import best_checkpoint, complete_steps, is_described
from pipelines.runs.metrics import read_metrics

CONFIG = "config.yaml"


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
    losses_by_task: dict[str, float]
    """Of the newest line of metrics."""
    scores: dict[str, float]
    """Of the run's evaluations, as `read_scores` names them."""
    nbytes: int
    version: str
    """Of this project, when the run began; empty where it was not recorded."""

    def cells(self) -> list[str]:
        """Return the row of a table under `COLUMNS`."""
        best = f"{_number(self.best_valid_loss)} at {self.best_step}" if self.best_step is not None else ""
        numbers = [_number(self.loss), _number(self.valid_loss), best, str(self.checkpoints), str(self.alarms)]
        steps = "" if self.steps is None else f"/{self.steps}"
        return [self.name, f"{self.step}{steps}", *numbers, f"{self.nbytes / 1e6:.1f}", self.version]

    def numbers(self) -> dict[str, float]:
        """Return losses and scores by name, those that there are."""
        losses = {"loss": self.loss, "held-out loss": self.valid_loss, "lowest held-out": self.best_valid_loss}
        losses |= {f"loss of {task}": loss for task, loss in self.losses_by_task.items()}
        return {name: loss for name, loss in losses.items() if loss is not None} | self.scores


COLUMNS = (
    "run",
    "step",
    "loss",
    "held-out loss",
    "lowest held-out",
    "checkpoints",
    "alarms",
    "MB",
    "version",
)


def runs_list(config: RunsListConfig) -> list[RunSummary]:
    """Print a line per run of a folder, then one per score of their evaluations.

    Raises:
        MissingError: If no folder in it is a run.
    """
    folders = [storage.join(config.runs, name) for name in storage.list_folders(config.runs)]
    runs = [folder for folder in folders if storage.file_exists(storage.join(folder, CONFIG))]
    if not runs:
        raise MissingError(f"{config.runs}: no folder in it is a run (none holds {CONFIG})")
    summaries = [summarise(run) for run in runs]
    _print_table(COLUMNS, [summary.cells() for summary in summaries])
    scores = [[one.name, name, _number(score)] for one in summaries for name, score in one.scores.items()]
    if scores:
        _print_table(("run", "test set, task and score", "value"), scores)
    if spread := seed_rows(runs, summaries):
        _print_table(seeds.COLUMNS, spread)
    return summaries


def seed_rows(runs: Sequence[str], summaries: Sequence["RunSummary"]) -> list[list[str]]:
    """Return rows under `seeds.COLUMNS` for runs and what they came to; none if no two differ by their seed alone."""
    configs = {summary.name: flat(read_config(run)) for run, summary in zip(runs, summaries, strict=True)}
    numbers = {summary.name: summary.numbers() for summary in summaries}
    return seeds.spread_rows(seeds.group_by_seed(configs), numbers)


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
        losses_by_task=lines[-1]["loss_by_task"] if lines else {},
        scores=read_scores(run),
        nbytes=storage.folder_nbytes(run),
        version=_version(run),
    )


def _version(run: str) -> str:
    described = storage.read_json(storage.join(run, "run.json")) if is_described(run) else {}
    return str(described.get("version", "")) if isinstance(described, dict) else ""


def read_config(run: str) -> dict[str, Any]:
    """Read a run's resolved config.

    Raises:
        MissingError: If the folder is no run.
    """
    uri = storage.join(run, CONFIG)
    if not storage.file_exists(uri):
        raise MissingError(f"{run}: no run there ({CONFIG} is missing)")
    return read_saved_config(uri)


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the keys of a config, nested ones as `outer.inner`, with their values as texts."""
    found: dict[str, str] = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": str(value)}
    return found


def config_differences(configs: list[dict[str, str]]) -> list[list[str]]:
    """Return the keys whose values are not the same everywhere, each with all the values."""
    keys = sorted({key for config in configs for key in config})
    rows = [[key, *(config.get(key, "") for config in configs)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _print_table(columns: tuple[str, ...], rows: list[list[str]]) -> None:
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    print_table(table)
