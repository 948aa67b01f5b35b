"""The identity of an encoder: what its weights and sizes are, in whatever file."""

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor


def weights_digest(state: Mapping[str, Tensor], sizes: Mapping[str, int]) -> str:
    """Return the sha256 (hex) of names, shapes, dtypes and bytes of all tensors and of the sizes.

    Take it of the weights as they were stored, before any cast, and it does not depend on device or precision.
    """
    digest = hashlib.sha256(json.dumps(dict(sizes), sort_keys=True).encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def key_difference(expected: set[str], found: set[str]) -> str:
    """Describe how the names in a weights file differ from the ones needed, empty if they do not."""
    parts = [
        f"{what} {', '.join(sorted(names)[:8])}{' …' if len(names) > 8 else ''} ({len(names)})"
        for what, names in (("missing", expected - found), ("unexpected", found - expected))
        if names
    ]
    return "; ".join(parts)
