"""AdamW and the learning-rate schedule of SALMONN: linear warm-up, then half a cosine down to a floor."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Parameter

from pipelines.errors import UserError
from pipelines.interface.config import require_range

NO_DECAY_NAMES = ("bias", "ln", "bn", "norm")


@dataclass(frozen=True)
class OptimConfig:
    lr: float = 3e-5
    """[1] Highest learning rate, reached after the warm-up."""
    min_lr: float = 1e-5
    """[1] Learning rate at the last step."""
    warmup_lr: float = 1e-6
    """[1] Learning rate at the first step."""
    warmup_steps: int = 3000
    """[steps] Length of the linear warm-up."""
    weight_decay: float = 0.05
    """[1] AdamW's decay of matrices and query tokens; norms and biases do not decay."""
    beta1: float = 0.9
    """[1] AdamW's decay of the gradient's mean."""
    beta2: float = 0.999
    """[1] AdamW's decay of its square."""
    clip_norm: float = 1.0
    """[L2 norm] Gradients are scaled down to this norm; 0: never."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require_range(self, ("clip_norm", "weight_decay", "warmup_steps"), low=0)
        require_range(self, ("beta1", "beta2"), low=0, high=0.999999)
        if not 0.0 <= self.warmup_lr <= self.lr or not 0.0 <= self.min_lr <= self.lr:
            raise UserError(f"optim: warmup_lr and min_lr must lie between 0 and lr={self.lr}")


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """Return the rate of a step; the cosine runs over all steps and is not shifted by the warm-up, as published."""
    if step < config.warmup_steps:
        return config.warmup_lr + (config.lr - config.warmup_lr) * step / config.warmup_steps
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def make_optimizer(parameters: Mapping[str, Parameter], config: OptimConfig) -> torch.optim.AdamW:
    """Build AdamW; parameters of fewer than two axes, norms and biases do not decay."""
    groups: dict[bool, list[Parameter]] = {True: [], False: []}
    for name, parameter in parameters.items():
        groups[parameter.ndim >= 2 and not any(part in name for part in NO_DECAY_NAMES)].append(parameter)
    settings: list[dict[str, Any]] = [
        {"params": groups[True], "weight_decay": config.weight_decay},
        {"params": groups[False], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([s for s in settings if s["params"]], lr=config.lr, betas=(config.beta1, config.beta2))
