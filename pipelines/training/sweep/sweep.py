"""`salmonn sweep`: many short training runs on one feature cache, side by side on Ray, and which was best."""

import io
import json
import shlex
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc
import torch
from rich.table import Table

from cluster.connection import cluster_device, connect
from cluster.room import pool_size
from pipelines import storage
from pipelines.batches.example_set import ExampleSet, tasks_of
from pipelines.errors import USER_ERRORS, JobIncompleteError, UserError
from pipelines.interface.config import save_config
from pipelines.interface.progress import Progress
from pipelines.interface.terminal import print_table
from pipelines.interface.words import counted
from pipelines.training.config import TrainConfig, full_paths
from pipelines.training.data import RunData
from pipelines.training.monitoring.curves import scalars_of
from pipelines.training.preflight import open_run
from pipelines.training.sweep.config import SweepConfig, plan_trials
from pipelines.training.sweep.pool import run_trials
from pipelines.training.sweep.report import write_sweep_report
from pipelines.training.sweep.results import TrialResult, as_json, cells_of, columns_of, ranked, read_result, swept_keys
from pipelines.training.sweep.space import log_keys
from pipelines.training.sweep.trial import Goal, Trial, name_trial
from pipelines.training.worker.validation import means

CONFIG, HELD_OUT = "sweep.yaml", "held_out.json"
SPEEDS = ("examples_per_second", "audio_hours_per_second", "step_seconds", "data_wait_fraction")
COSTS = ("megabytes_per_second", "peak_memory_mb", "skipped_steps")
"""Numbers of a line of metrics beside losses and accuracies, as these."""


def sweep(config: SweepConfig, progress: Progress | None = None) -> list[TrialResult]:
    """Train all trials that have not ended, then print, draw and return what all came to, the best first.

    Raises:
        UserError: If a trial cannot be trained with its keys, before any of them starts, or another job is at work.
        JobIncompleteError: If trials failed; the others are done, and the report is written.
    """
    config = replace(full_paths(config), sweep=storage.full_path(config.sweep))
    with storage.held(config.sweep):
        return _sweep(config, progress or Progress())


def _sweep(config: SweepConfig, progress: Progress) -> list[TrialResult]:
    goal, trials = Goal(config.metric, config.mode), plan_trials(config)
    with progress.opening("sweep: looking at the trials"):
        _open_trials(config.sweep, trials, goal)
    save_config(config, storage.join(config.sweep, CONFIG))
    results = [read_result(trial, goal) for trial in trials]
    todo = sum(not result.has_ended for result in results)
    print(f"{config.sweep}: {counted(len(trials), 'trial')}, {todo} of them to do")
    failures: dict[int, str] = {}
    if todo:
        with progress.opening("sweep: Ray is starting"):
            own_cluster = connect(config.ray)
        resources = _resources(config, own_cluster=own_cluster)
        total = sum(trial.config.steps for trial in trials)
        with progress.phase("sweep", unit="steps", total=total) as phase:
            failures = run_trials(
                trials,
                results,
                goal=goal,
                stop_early=config.stop_early,
                resources=resources,
                num_trials=config.trials_per_process,
                max_failures=config.max_failures,
                phase=phase,
            )
    results = ranked([read_result(trial, goal, failures.get(trial.number, "")) for trial in trials], goal)
    _report(config, results, goal)
    if missing := [result for result in results if not result.has_ended]:
        raise JobIncompleteError(_describe_missing(config, missing, len(results)))
    return results


def _open_trials(sweep: str, trials: Sequence[Trial], goal: Goal) -> None:
    """Check all trials in a temporary folder first, so that where one of them cannot start nothing is left behind."""
    data = RunData()
    with tempfile.TemporaryDirectory(prefix="salmonn-") as folder:
        for trial in trials:
            is_there = storage.file_exists(storage.join(trial.config.run, "run.json"))
            config = trial.config if is_there else replace(trial.config, run=str(Path(folder) / str(trial.number)))
            held_out = _open_trial(trial, config, goal, data)
            if trial is trials[0]:
                first = held_out
            elif _judges(held_out, goal) != _judges(first, goal):
                raise UserError(
                    f"{trial}: is judged by other held-out examples than trial 0, and their {goal.metric} not to be "
                    "compared; that of one task may be: metric=valid_loss_by_task/asr"
                )
    if first:
        _require_same_held_out(sweep, trials[0], first)
    for trial in trials:
        _open_trial(trial, trial.config, goal, data)


def _open_trial(trial: Trial, config: TrainConfig, goal: Goal, data: RunData) -> ExampleSet | None:
    """Open a trial's run, and return its held-out examples if its score is of them.

    Raises:
        UserError: If the run cannot be opened or its lines of metrics will not have the score.
    """
    try:
        with redirect_stdout(io.StringIO()):  # or every trial would print the same about the data
            examples = open_run(config, pending=[], data=data)
        tasks, held_out = tasks_of(examples), None
        if config.valid_every:
            held_out = data.load_valid_examples(config, data.open_index(config.cache, config.read), tasks)
        names = metric_names(tasks, tasks_of(held_out) if held_out else None)
        if goal.metric not in names:
            lacks_held_out = goal.metric.startswith("valid_") and not held_out
            hint = " nothing is held out; give valid_splits=[…] and valid_every=…, or metric=loss;" * lacks_held_out
            raise UserError(f"metric={goal.metric}:{hint} lines of metrics will have {', '.join(names)}")
    except (FileNotFoundError, *USER_ERRORS) as error:
        raise UserError(f"{trial}: {error}") from None
    return held_out if goal.metric.startswith("valid_") else None


def _judges(held_out: ExampleSet | None, goal: Goal) -> list[str]:
    """Return the ids of the held-out examples that a score is of."""
    if not held_out:
        return []
    task = goal.metric.partition("/")[2]
    judges = held_out.table.filter(pc.field("task") == task) if task else held_out.table
    ids: list[str] = judges["example_id"].to_pylist()
    return ids


def _require_same_held_out(sweep: str, trial: Trial, held_out: ExampleSet) -> None:
    """Refuse other held-out examples of the first trial than at the first launch: its score may be by those."""
    uri = storage.join(sweep, HELD_OUT)
    if not storage.file_exists(uri):
        storage.write_bytes(uri, json.dumps({"digest": held_out.digest}).encode())
    elif storage.read_json(uri)["digest"] != held_out.digest:
        raise UserError(
            f"valid_splits={trial.config.valid_splits}: trials in {sweep} were judged by other held-out examples, and "
            "scores by both are not to be compared; give another folder"
        )


def metric_names(tasks: list[str], held_out_tasks: list[str] | None) -> list[str]:
    """Return the numbers of a run's lines of metrics that trials can be ranked by; None: nothing is held out."""
    found = scalars_of(means(tasks, torch.ones(len(tasks), 3)))
    if held_out_tasks is not None:
        found |= scalars_of(means(held_out_tasks, torch.ones(len(held_out_tasks), 3), "valid_"))
    return [*found, *SPEEDS, *COSTS]


def _resources(config: SweepConfig, *, own_cluster: bool) -> dict[str, float]:
    """Return what Ray sets aside for a process; another cluster may grow, this machine must have room for one."""
    on_gpu = cluster_device(config.device) == "cuda"
    resources = {"CPU": float(config.threads)} | ({"GPU": config.gpus_per_process} if on_gpu else {})
    if own_cluster:
        pool_size(0, num_cpus_per_actor=config.threads, num_gpus_per_actor=resources.get("GPU", 0))
    return resources


def _report(config: SweepConfig, results: Sequence[TrialResult], goal: Goal) -> None:
    """Print the table and write it to sweep.json, and with pictures to sweep.html."""
    table = Table(*columns_of(results, goal), box=None, pad_edge=False)
    for place, result in enumerate(results):
        table.add_row(*cells_of(result, swept_keys(results)), style="" if place else "bold")
    print_table(table)
    storage.write_bytes(storage.join(config.sweep, "sweep.json"), as_json(results, goal))
    page = storage.join(config.sweep, "sweep.html")
    command = shlex.join(["salmonn", "sweep", storage.join(config.sweep, CONFIG)])
    write_sweep_report(page, results, goal, log_keys=log_keys(config.grid, config.random, TrainConfig), command=command)
    print(f"report: {page}")


def _describe_missing(config: SweepConfig, missing: Sequence[TrialResult], num_trials: int) -> str:
    listed = "; ".join(
        f"{name_trial(result.number, result.values)}: {result.reason or result.ending}" for result in missing
    )
    return f"{config.sweep}: {len(missing)} of {num_trials} trials are not done: {listed}"
