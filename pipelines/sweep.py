"""`salmonn sweep`: many short training runs on one feature cache, side by side on Ray Tune, and which was best."""

import io
import itertools
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import ray
import torch
from omegaconf import MISSING, OmegaConf
from rich.console import Console
from rich.table import Table

from cluster.connection import connect
from cluster.unit_queue import pool_size
from pipelines import storage
from pipelines.config import load_config, require_range, save_config
from pipelines.curves import scalars_of
from pipelines.errors import JobIncompleteError
from pipelines.micro_batch import tasks_of
from pipelines.parts import Parts
from pipelines.progress import Progress
from pipelines.sweep_report import write_sweep_report
from pipelines.sweep_results import TrialResult, as_json, cells_of, columns_of, ranked, read_result, swept_keys
from pipelines.sweep_space import Values, draws, log_keys, points_of_grid
from pipelines.sweep_trial import Goal, Mode, Trial, name_trial
from pipelines.sweep_tune import StopEarlyConfig, run_trials
from pipelines.train import open_run, with_full_paths
from pipelines.train_loop import TrainConfig, load_valid_examples
from pipelines.validation import means

CONFIG = "sweep.yaml"
NOT_SWEPT = ("run", "runs", "name", "workers", "threads", "ray")
"""Keys that place a trial, or that all trials must share."""
SPEEDS = ("examples_per_second", "audio_hours_per_second", "data_wait_fraction", "skipped_steps")
"""Numbers of a line of metrics beside losses and accuracies."""


@dataclass(frozen=True)
class SweepConfig(TrainConfig):
    """The keys of `train`, from which the trials differ only where `grid` and `random` say so."""

    sweep: str = MISSING
    """[URI] Folder of the sweep, with the trials' runs in trials/<number>; a sweep that was stopped continues."""
    grid: dict[str, Any] = field(default_factory=dict)
    """[lists by key] Every combination of these values is tried: grid.optim.lr=[1e-4,3e-4] grid.lora.rank=[4,8]."""
    random: dict[str, Any] = field(default_factory=dict)
    """[ranges or lists by key] Drawn from: random.optim.lr={low: 1e-5, high: 1e-3, log: true} random.seed=[0,1,2]."""
    num_trials: int = 1
    """[count] Draws from `random`, each of them tried with every combination of `grid`."""
    sweep_seed: int = 0
    """[number] Decides what is drawn from `random`, and nothing else."""
    metric: str = "valid_loss"
    """[name] Number of a line of metrics by which trials are ranked, each by its best line: valid_token_accuracy,
    valid_loss_by_task/asr, …; what is held out needs valid_splits and valid_every."""
    mode: Mode = "min"
    """[name] Whether the lowest or the highest is best."""
    gpus_per_trial: float = 1.0
    """[GPUs] Of each trial, if the cluster has any; 0.25 lets four trials share one."""
    stop_early: StopEarlyConfig = field(default_factory=StopEarlyConfig)

    def __post_init__(self) -> None:
        """Check what concerns the sweep; each trial checks the keys of its run."""
        if self.run:
            raise ValueError(f"run={self.run}: the trials' runs lie in the sweep's folder, sweep={self.sweep}")
        if self.workers != 1:
            raise ValueError(f"workers={self.workers}: a trial is trained by one worker; trials run side by side")
        require_range(self, ("num_trials",), low=1)
        require_range(self, ("sweep_seed",), low=0, high=2**31)
        require_range(self, ("gpus_per_trial",), low=0.001)
        if not self.grid and not self.random:
            raise ValueError("grid.KEY=[…] or random.KEY=… is needed: what the trials differ in")
        if self.num_trials > 1 and not self.random:
            raise ValueError(f"num_trials={self.num_trials}: there is nothing to draw, random.KEY=… is not given")


def sweep(config: SweepConfig, progress: Progress | None = None) -> list[TrialResult]:
    """Train all trials that have not ended, then print, draw and return what all came to, the best first.

    Raises:
        ValueError: If a trial cannot be trained with its keys, before any of them starts.
        JobIncompleteError: If trials failed; the others are done, and the report is written.
    """
    config = replace(config, sweep=storage.full_path(config.sweep))
    goal, trials = Goal(config.metric, config.mode), plan_trials(config)
    _open_trials(trials, goal)
    save_config(config, storage.join(config.sweep, CONFIG))
    results = [read_result(trial, goal) for trial in trials]
    todo = sum(not result.has_ended for result in results)
    print(f"{config.sweep}: {len(trials)} trials, {todo} of them to do")
    failures: dict[int, str] = {}
    if todo:
        own_cluster = connect(config.ray)
        resources = _resources(config, own_cluster=own_cluster)
        total = sum(trial.config.steps for trial in trials)
        with (progress or Progress()).phase("sweep", unit="steps", total=total) as phase:
            failures = run_trials(
                trials,
                results,
                goal=goal,
                stop_early=config.stop_early,
                resources=resources,
                max_failures=config.max_failures,
                phase=phase,
            )
    results = ranked([read_result(trial, goal, failures.get(trial.number, "")) for trial in trials], goal)
    _report(config, results, goal)
    if missing := [result for result in results if not result.has_ended]:
        raise JobIncompleteError(_describe_missing(config, missing, len(results)))
    return results


def plan_trials(config: SweepConfig) -> list[Trial]:
    """Return the trials in the order of their numbers; the same keys give the same trials.

    Raises:
        ValueError: If a key or value cannot be swept; the message names the trial.
    """
    points = points_of_grid(config.grid, TrainConfig)
    drawn = draws(config.random, TrainConfig, count=config.num_trials, seed=config.sweep_seed)
    for key in sorted(points[0].keys() | drawn[0].keys()):
        if key in points[0].keys() & drawn[0].keys():
            raise ValueError(f"{key} is given both as grid.{key} and as random.{key}")
        if key.partition(".")[0] in NOT_SWEPT:
            raise ValueError(f"{key} cannot be swept: it places a trial, or must be the same for all")
    pairs = enumerate(itertools.product(drawn, points))
    return [_plan_trial(config, number, dict(sorted((draw | point).items()))) for number, (draw, point) in pairs]


def _plan_trial(config: SweepConfig, number: int, values: Values) -> Trial:
    keys: dict[str, Any] = OmegaConf.to_container(OmegaConf.structured(config))  # type: ignore[assignment]
    shared = {key.name: keys[key.name] for key in fields(TrainConfig)}
    run = storage.join(config.sweep, "trials", f"{number:04d}")
    try:
        return Trial(number, values, with_full_paths(load_config(TrainConfig, [{**shared, "run": run}, values])))
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{name_trial(number, values)}: {error}") from None


def _open_trials(trials: Sequence[Trial], goal: Goal) -> None:
    """Check all trials in a temporary folder first, so that where one of them cannot start nothing is left behind."""
    parts = Parts()
    with tempfile.TemporaryDirectory(prefix="salmonn-") as folder:
        for trial in trials:
            if not storage.file_exists(storage.join(trial.config.run, "run.json")):
                _open_trial(trial, replace(trial.config, run=str(Path(folder) / str(trial.number))), goal, parts)
    for trial in trials:
        _open_trial(trial, trial.config, goal, parts)


def _open_trial(trial: Trial, config: TrainConfig, goal: Goal, parts: Parts) -> None:
    """Open a trial's run and check that its lines of metrics will have what trials are ranked by."""
    try:
        with redirect_stdout(io.StringIO()):  # what it tells of the data would be told by every trial
            examples = open_run(config, pending=[], parts=parts)
        names = [*_measures(tasks_of(examples)), *SPEEDS]
        if config.valid_every:
            cache = parts.open_cache(config.cache, config.read)
            held_out = load_valid_examples(config, cache, tasks_of(examples), parts)
            names += _measures(tasks_of(held_out), "valid_")
        if goal.metric not in names:
            known = f"there are {', '.join(names)}" + (
                "" if config.valid_every else "; valid_every=0: nothing held out"
            )
            raise ValueError(f"metric={goal.metric}: no such number in the lines of metrics; {known}")
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{trial}: {error}") from None


def _measures(tasks: list[str], prefix: str = "") -> list[str]:
    return list(scalars_of(means(tasks, torch.ones(len(tasks), 3), prefix)))


def _resources(config: SweepConfig, *, own_cluster: bool) -> dict[str, float]:
    """Return what Ray sets aside for a trial; another cluster may grow, this machine must have room for one."""
    has_gpus = bool(ray.cluster_resources().get("GPU"))
    resources = {"CPU": float(config.threads)} | ({"GPU": config.gpus_per_trial} if has_gpus else {})
    if own_cluster:
        pool_size(0, num_cpus_per_actor=config.threads, num_gpus_per_actor=resources.get("GPU", 0))
    return resources


def _report(config: SweepConfig, results: Sequence[TrialResult], goal: Goal) -> None:
    """Print the table and write it to sweep.json, and with pictures to sweep.html."""
    table = Table(*columns_of(results, goal), box=None, pad_edge=False)
    for result in results:
        table.add_row(*cells_of(result, swept_keys(results)))
    Console(markup=False).print(table)
    storage.write_bytes(storage.join(config.sweep, "sweep.json"), as_json(results, goal))
    page = storage.join(config.sweep, "sweep.html")
    command = f"salmonn sweep {storage.join(config.sweep, CONFIG)}"
    write_sweep_report(page, results, goal, log_keys=log_keys(config.random, TrainConfig), command=command)
    print(f"report: {page}")


def _describe_missing(config: SweepConfig, missing: Sequence[TrialResult], num_trials: int) -> str:
    listed = "; ".join(
        f"{name_trial(result.number, result.values)}: {result.reason or result.ending}" for result in missing
    )
    return f"{config.sweep}: {len(missing)} of {num_trials} trials are not done: {listed}"
