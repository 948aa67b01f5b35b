"""What a step adds up over its micro-batches and workers, and the optimizer step that follows from it."""

import math
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter


class StepSums:
    """Losses by task and gradients, summed in one float64 tensor: what the workers add up is one message.

    In float64 the order of so few terms leaves nothing behind once the result is float32.
    """

    def __init__(self, parameters: Mapping[str, Parameter], num_tasks: int, device: torch.device) -> None:
        self._parameters = list(parameters.values())
        sizes = [3 * num_tasks, *(parameter.numel() for parameter in self._parameters)]
        self._all = torch.zeros(sum(sizes), dtype=torch.float64, device=device)
        head, *parts = self._all.split(sizes)
        self.by_task = head.view(num_tasks, 3)
        """[tasks, 3] As `loss_by_task` gives them."""
        self._gradients = [part.view_as(weight) for part, weight in zip(parts, self._parameters, strict=True)]

    @property
    def nbytes(self) -> int:
        return self._all.nbytes

    def clear(self) -> None:
        """Begin a step."""
        self._all.zero_()

    def add(self, by_task: Tensor) -> None:
        """Add a micro-batch's losses, and its gradients, which are taken from the parameters."""
        self.by_task += by_task
        for gradient_sum, parameter in zip(self._gradients, self._parameters, strict=True):
            if parameter.grad is not None:
                gradient_sum.add_(parameter.grad)
            parameter.grad = None

    def add_up_workers(self) -> None:
        """Add what the other workers have summed; all of them call this."""
        dist.all_reduce(self._all)

    def apply(self, optimizer: torch.optim.Optimizer, *, lr: float, clip_norm: float) -> bool:
        """Take the optimizer step of the mean loss per target token, gradients clipped to a norm (0: never).

        If loss or gradient is not finite, on any worker, no worker changes a weight: return False.
        """
        loss_sum, targets, _ = self.by_task.sum(dim=0).tolist()
        for gradient_sum, parameter in zip(self._gradients, self._parameters, strict=True):
            parameter.grad = (gradient_sum / max(targets, 1.0)).to(parameter.dtype)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, clip_norm or float("inf"))
        finite = math.isfinite(loss_sum) and bool(torch.isfinite(norm))
        if finite:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return finite
