"""`salmonn runs list` and `salmonn runs compare`: what the runs of a folder came to, and where their configs differ."""

from dataclasses import dataclass
from typing import Any

from rich.table import Table

from pipelines import storage
from pipelines.errors import MissingError
from pipelines.interface.config import read_saved_config
from pipelines.interface.terminal import print_table
from pipelines.runs.config import RunsListConfig
from pipelines.runs.folder import best_checkpoint, complete_steps
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
    return read_saved_config(uri)


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
