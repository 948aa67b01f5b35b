"""Which device this machine computes on."""

import torch

from pipelines.errors import UserError


def local_device(device: str) -> str:
    """Return the device to use, the one that `auto` stands for on this machine.

    Raises:
        UserError: If a GPU is asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: this machine has no GPU that PyTorch can use")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
