"""How likely continuations are in float64, for where float32 cannot tell which of two is likelier.

In float32 the last digits of a logit depend on what stands beside it in the batch, and on the machine. Where two
continuations are closer than that, the LLM reads them again with everything computed in float64.

Letters: S sequences of tokens that continue a prompt, T positions of the prompt, M tokens of all sequences, each prefix
that several share counted once, P = T + M, H LLM width, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from llm.decoding.layers import masks


class InFloat64(TorchDispatchMode):
    """Compute in float64, within the block, all that would be computed in float32.

    Weights of float32 are taken as float64 where they are used, one operation after the other, so that no second LLM
    stands in memory. What stands outside the block must not be written to.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute one operation."""
        if func is torch.ops.aten.embedding.default:  # the rows are widened, not the table
            return func(*args, **kwargs or {}).double()
        return func(*tree_map(_widened, args), **tree_map(_widened, kwargs or {}))


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype == torch.float32:
        return value.double()
    return torch.float64 if value is torch.float32 else value


@dataclass(frozen=True)
class Likelihoods:
    """Of sequences that continue a prompt."""

    scores: Tensor
    """[S] Log-probability of each."""
    logits: Tensor
    """[S, V] Of what follows each."""


def likelihoods(
    forward: Callable[..., Tensor],
    embed: Callable[[Tensor], Tensor],
    windows: Mapping[str, int | None],
    prompt_1TH: Tensor,
    sequences: Sequence[Sequence[int]],
) -> Likelihoods:
    """Read all sequences in one pass, as a tree that begins with the prompt.

    Args:
        forward: The LLM, which returns logits.
        embed: Its embedding of token ids.
        windows: As of `masks`.
        prompt_1TH: The prompt, without padding.
        sequences: [S] Token ids of each; it may be empty.
    """
    last = prompt_1TH.shape[1] - 1
    places: dict[tuple[int, int], int] = {}  # of a token by the place of the one before
    paths = []
    for sequence in sequences:
        path = [last]
        for token in sequence:
            path.append(places.setdefault((path[-1], token), last + 1 + len(places)))
        paths.append(path)
    sees_PP = torch.ones(last + 1 + len(places), last + 1 + len(places), dtype=torch.bool).tril()
    positions = list(range(last + 1))
    for (before, _), place in places.items():
        sees_PP[place] = sees_PP[before]
        sees_PP[place, place] = True
        positions.append(positions[before] + 1)
    device = prompt_1TH.device
    tokens_1M = torch.tensor([[token for _, token in places]], dtype=torch.long, device=device)
    positions_1P, sees_1PP = torch.tensor([positions], device=device), sees_PP.unsqueeze(0).to(device)
    logits_NV = forward(
        inputs_embeds=torch.cat([prompt_1TH, embed(tokens_1M)], dim=1),
        position_ids=positions_1P,
        attention_mask=masks(windows, sees_1PP, positions_1P, positions_1P, prompt_1TH.dtype),
        logits_to_keep=len(places) + 1,
        use_cache=False,
    ).squeeze(0)  # N: the prompt's last position and the M tokens
    log_probs_NV = logits_NV.log_softmax(dim=-1)
    scores = [
        log_probs_NV[[place - last for place in path[:-1]], list(sequence)].sum()
        for path, sequence in zip(paths, sequences, strict=True)
    ]
    return Likelihoods(torch.stack(scores), logits_NV[[path[-1] - last for path in paths]])
