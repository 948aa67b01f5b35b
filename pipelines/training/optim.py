"""AdamW and the learning-rate schedule of SALMONN: linear warm-up, then half a cosine down to a floor."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import Parameter

from pipelines.training.config import OptimConfig

NO_DECAY_NAMES = ("bias", "ln", "bn", "norm")


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
