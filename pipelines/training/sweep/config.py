"""The keys of `salmonn sweep`, and the trials that follow from them."""

import itertools
from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import MISSING, OmegaConf

from pipelines import storage
from pipelines.errors import USER_ERRORS, UserError
from pipelines.interface.config import load_config, require_range
from pipelines.interface.words import command
from pipelines.training.config import TrainConfig, with_full_paths
from pipelines.training.sweep.space import Values, draws, points_of_grid
from pipelines.training.sweep.trial import Mode, Trial, name_trial

NOT_SWEPT = ("run", "runs", "name", "workers", "threads", "device", "ray", "eval_every")
"""Keys that place a trial, or that all trials must share."""
OF_AN_LLM = ("llm", "precision")
"""Keys that trials over one LLM must share."""


@dataclass(frozen=True)
class StopEarlyConfig:
    """Tune's ASHA: trials are compared with trials that came as far before them."""

    grace_steps: int = 0
    """[steps] Where trials are compared first, then at each `reduction` times as many; 0: none is stopped early."""
    reduction: float = 4.0
    """[factor] A trial goes on if it is among the best 1/reduction of the trials that came so far before it,
    itself among them."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require_range(self, ("grace_steps",), low=0)
        if not self.reduction > 1:
            raise UserError(f"reduction={self.reduction}: must be above 1")


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
    trials_per_process: int = 1
    """[count] Trials that one process trains by turns over one frozen LLM: eight of them hold one LLM, eight
    optimizers, and one trial's activations. Each is, bit for bit, what it is alone."""
    gpus_per_process: float = 1.0
    """[GPUs] Of a process, if the cluster has any; 0.25 lets four processes, each with an LLM, share one."""
    stop_early: StopEarlyConfig = field(default_factory=StopEarlyConfig)

    def __post_init__(self) -> None:
        """Check what concerns the sweep; each trial checks the keys of its run."""
        if self.run:
            raise UserError(f"run={self.run}: the trials' runs lie in the sweep's folder, sweep={self.sweep}")
        if self.workers != 1:
            raise UserError(f"workers={self.workers}: a trial is trained by one worker; trials run side by side")
        if self.eval_every:
            raise UserError(
                f"eval_every={self.eval_every}: trials are not scored while they train; evaluate scores them"
            )
        require_range(self, ("num_trials", "trials_per_process"), low=1)
        require_range(self, ("sweep_seed",), low=0, high=2**31)
        require_range(self, ("gpus_per_process",), low=0.001)
        if self.trials_per_process > 1 and self.wandb:
            raise UserError(f"wandb={self.wandb}: a process has one run there; trials_per_process=1 is needed")
        if not self.grid and not self.random:
            raise UserError("grid.KEY=[…] or random.KEY=… is needed: what the trials differ in")
        if self.num_trials > 1 and not self.random:
            raise UserError(f"num_trials={self.num_trials}: there is nothing to draw, random.KEY=… is not given")

    def next_step(self) -> str:
        """Return the command that goes on from here."""
        return command("runs", "list", runs=storage.join(self.sweep, "trials"))


def plan_trials(config: SweepConfig) -> list[Trial]:
    """Return the trials in the order of their numbers; the same keys give the same trials.

    Raises:
        UserError: If a key or value cannot be swept; the message names the trial.
    """
    points = points_of_grid(config.grid, TrainConfig)
    drawn = draws(config.random, TrainConfig, count=config.num_trials, seed=config.sweep_seed)
    for key in sorted(points[0].keys() | drawn[0].keys()):
        if key in points[0].keys() & drawn[0].keys():
            raise UserError(f"{key} is given both as grid.{key} and as random.{key}")
        if key in OF_AN_LLM and config.trials_per_process > 1:
            raise UserError(
                f"{key} cannot be swept with trials_per_process={config.trials_per_process}: those share an LLM"
            )
        if key.partition(".")[0] in NOT_SWEPT:
            raise UserError(f"{key} cannot be swept: it places a trial, or must be the same for all")
    keys: dict[str, Any] = OmegaConf.to_container(OmegaConf.structured(config))  # type: ignore[assignment]
    shared = {key.name: keys[key.name] for key in fields(TrainConfig)}
    trials = [
        _plan_trial(config.sweep, number, shared, dict(sorted((draw | point).items())))
        for number, (draw, point) in enumerate(itertools.product(drawn, points))
    ]
    if config.stop_early.grace_steps > max(trial.config.steps for trial in trials):
        raise UserError(f"stop_early.grace_steps={config.stop_early.grace_steps}: no trial has so many steps")
    return trials


def _plan_trial(sweep: str, number: int, shared: Values, values: Values) -> Trial:
    keys = {**shared, "run": storage.join(sweep, "trials", f"{number:04d}")}
    try:
        return Trial(number, values, with_full_paths(load_config(TrainConfig, [keys, values])))
    except (FileNotFoundError, *USER_ERRORS) as error:
        raise UserError(f"{name_trial(number, values)}: {error}") from None
