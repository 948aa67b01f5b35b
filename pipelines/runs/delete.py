"""`salmonn runs delete` and `prune`: a run, or those of its checkpoints that nothing needs, while nobody trains it."""

from pipelines import storage
from pipelines.errors import UserError
from pipelines.interface.words import command, counted
from pipelines.runs.config import RunsDeleteConfig, RunsPruneConfig
from pipelines.runs.evaluations import evaluated_steps
from pipelines.runs.folder import (
    START,
    best_checkpoint,
    checkpoint_uri,
    complete_steps,
    delete_checkpoint,
    newest_step,
    unfinished_steps,
)
from pipelines.runs.summary import read_config, summarise


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


def runs_prune(config: RunsPruneConfig) -> None:
    """Remove the checkpoints that are neither to be kept nor needed, and what a killed job left of others.

    Raises:
        MissingError: If the folder is no run.
        UserError: If it has no complete checkpoint, or another job is at work in it.
    """
    read_config(config.run)
    with storage.held(config.run):
        needed = _needed(config)
        for step, why in sorted(needed.items()):
            print(f"{config.run}: checkpoint {step} stays: {why}")
        gone = [step for step in complete_steps(config.run) if step not in needed]
        left = unfinished_steps(config.run)
        nbytes = sum(storage.folder_nbytes(checkpoint_uri(config.run, step)) for step in [*gone, *left])
        if not config.dry_run:
            for step in [*gone, *left]:
                delete_checkpoint(config.run, step)
    unfinished = f" and {len(left)} unfinished" if left else ""
    done = "would be removed" if config.dry_run else "removed"
    print(f"{config.run}: {counted(len(gone), 'checkpoint')}{unfinished}, {nbytes / 1e6:.1f} MB, {done}")


def _needed(config: RunsPruneConfig) -> dict[int, str]:
    """Return the checkpoints that stay, each with the reason that weighs most."""
    newest, best = newest_step(config.run), best_checkpoint(config.run)
    needed = dict.fromkeys(complete_steps(config.run)[-config.newest :], f"keep={config.keep}")
    needed |= dict.fromkeys(evaluated_steps(config.run), "an evaluation scored it")
    for other, step in _starts(config.run):
        needed[step] = f"{other} started from it"
    if best:
        needed[best[0]] = "of the lowest held-out loss"
    return {step: why for step, why in needed.items() if step in complete_steps(config.run)} | {newest: "the newest"}


def _starts(run: str) -> list[tuple[str, int]]:
    """Return the runs beside a run that started from one of its checkpoints, by the run's name, and from which."""
    name = _folder_name(run)
    starts = []
    for other in storage.list_folders(storage.parent(run)):
        uri = storage.join(storage.parent(run), other, START)
        if not storage.file_exists(uri):
            continue
        start = storage.read_json(uri)
        try:
            if _folder_name(start["init_from"]) == name:
                starts.append((other, int(start["step"])))
        except (AttributeError, KeyError, TypeError, ValueError):
            raise UserError(f"{uri}: damaged, not what a run started from") from None
    return starts


def _folder_name(uri: str) -> str:
    return storage.full_path(uri).partition("?")[0].rstrip("/").rpartition("/")[2]
