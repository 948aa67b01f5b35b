"""`salmonn runs delete`: a run and all its files, while nobody trains it."""

from pipelines import storage
from pipelines.errors import UserError
from pipelines.interface.words import command, counted
from pipelines.runs.config import RunsDeleteConfig
from pipelines.runs.summary import summarise


def runs_delete(config: RunsDeleteConfig) -> None:
    """Remove a run's folder.

    Raises:
        MissingError: If the folder is no run.
        UserError: If `yes` is not given, saying what would go, or another job is at work in the run.
    """
    summary = summarise(config.run)
    what = f"{config.run}: {counted(summary.checkpoints, 'checkpoint')}, {summary.nbytes / 1e6:.1f} MB"
    if not config.yes:
        raise UserError(f"{what}; to remove all of it: {command('runs', 'delete', run=config.run, yes='true')}")
    with storage.held(config.run):
        storage.delete_folder(config.run)
    print(f"{what}, removed")
