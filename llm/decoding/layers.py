"""What the layers of an LLM see of the positions before: all, or some positions back.

Letters: B rows, Q queries, P keys.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import get_layer_types_and_kwargs

from llm.errors import LLMError


def require_decoding(llm: Any) -> None:
    """Check that the LLM can answer here.

    Raises:
        LLMError: If it has layers that keep something else than keys and values of every position they see.
    """
    windows_of(llm)


def windows_of(llm: Any) -> dict[str, int | None]:
    """Return how many positions back layers see, by their kind; None: all. Raises as `require_decoding`."""
    config = llm.config.get_text_config(decoder=True)
    kinds, options = get_layer_types_and_kwargs(config)
    unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    found = f"of the kind {unknown[0]}" if unknown else ""
    if getattr(config, "num_kv_shared_layers", 0):
        found = "that take keys and values of other layers"
    elif "local" in getattr(config, "attention_layers", ()):  # GPT-Neo's, which takes a column for a position
        found = "of the kind local"
    elif config.model_type in ("bloom", "mpt") or getattr(config, "alibi", False):
        found = "that attend by ALiBi"
    if found:
        raise LLMError(f"language models of type {llm.config.model_type} cannot answer here: they have layers {found}")
    return {kind: option.get("sliding_window") for kind, option in zip(kinds, options, strict=True)}


def most_positions(llm: Any) -> int | None:
    """Return how many positions the LLM takes, each of which it sees alike whatever comes behind it; None: any number.

    An LLM with LongRoPE takes more, but then it turns all positions otherwise: those of the batch beside it too.
    """
    config = llm.config.get_text_config(decoder=True)
    positions: int | None = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if positions and rope.get("rope_type") == "longrope":
        return min(positions, rope.get("original_max_position_embeddings") or positions)
    return positions


def masks(
    windows: Mapping[str, int | None], sees_BQP: Tensor, queries_BQ: Tensor, keys_BP: Tensor, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """Return what is added to attention's logits, [B, 1, Q, P]; by the layers' kinds if there are two.

    Args:
        windows: How many positions back layers see, by their kind; None: all.
        sees_BQP: Whether a query is to see a key, however far back it stands.
        queries_BQ: The queries' positions.
        keys_BP: The keys' positions.
        dtype: Of the mask.
    """
    found = {}
    for kind, window in windows.items():
        seen_BQP = sees_BQP
        if window is not None:
            seen_BQP = seen_BQP & (keys_BP.unsqueeze(1) > queries_BQ.unsqueeze(2) - window)
        # A number for each column: whoever computes attention, by `sdpa` or not, takes that.
        open_BQP = torch.zeros_like(seen_BQP, dtype=dtype)
        found[kind] = open_BQP.masked_fill_(~seen_BQP, torch.finfo(dtype).min).unsqueeze(1)
    return found if len(found) > 1 else next(iter(found.values()))
