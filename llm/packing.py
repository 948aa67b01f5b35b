"""Examples packed into one row of the LLM, one after the other, so that no position of a batch is padding.

Position numbers begin again at 0 with each example; from that transformers derives a mask that keeps attention within
it. Letters: T positions of the row, L of one example, N that get logits, D LLM width, H heads, d width of a head,
V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from llm.errors import LLMError

_ATTENTION = "sdpa_by_example"
_PROBE_LENGTHS = (48, 16)


def packed_logits(llm: Any, embeds_TD: Tensor, lengths: Sequence[int], columns_N: Tensor) -> Tensor:
    """Return the logits [N, V], in the LLM's dtype, at some positions of a row of examples of these lengths."""
    positions_T = torch.cat([torch.arange(length) for length in lengths]).to(embeds_TD.device)
    logits_1NV: Tensor = llm(
        inputs_embeds=embeds_TD.unsqueeze(0),
        position_ids=positions_T.unsqueeze(0),
        logits_to_keep=columns_N.to(embeds_TD.device),
        use_cache=False,
        example_lengths=list(lengths),
    ).logits
    return logits_1NV.squeeze(0)


def attend_by_example(llm: Any) -> None:
    """Let an LLM that attends by PyTorch's `sdpa` compute a packed row's mask only where it is not closed.

    An LLM that attends in another way computes all of T x T, with the same result.
    """
    if llm.config._attn_implementation == "sdpa":
        AttentionInterface.register(_ATTENTION, _attend)
        AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
        llm.set_attn_implementation(_ATTENTION)


def _attend(
    module: nn.Module,
    query_1HTd: Tensor,
    key_1HTd: Tensor,
    value_1HTd: Tensor,
    mask_11TT: Tensor | None,
    *,
    example_lengths: Sequence[int] = (),
    **options: Any,
) -> tuple[Tensor, None]:
    """Return [1, T, H, d]: `sdpa` of each example under its own block of the mask."""
    is_shared, is_continued = (key_1HTd.shape[place] != query_1HTd.shape[place] for place in (1, 2))
    if is_shared and is_continued and mask_11TT is not None and options.get("position_bias") is None:
        return _attend_in_groups(query_1HTd, key_1HTd, value_1HTd, mask_11TT, scale=options.get("scaling")), None
    if mask_11TT is None or not example_lengths:
        attended, _ = sdpa_attention_forward(module, query_1HTd, key_1HTd, value_1HTd, mask_11TT, **options)
        return attended, None
    attended_1LHd, start = [], 0
    examples = (tensor_1HTd.split(example_lengths, dim=2) for tensor_1HTd in (query_1HTd, key_1HTd, value_1HTd))
    for length, query, key, value in zip(example_lengths, *examples, strict=True):
        own = slice(start, start + length)
        attended, _ = sdpa_attention_forward(module, query, key, value, mask_11TT[..., own, own], **options)
        attended_1LHd.append(attended)
        start += length
    return torch.cat(attended_1LHd, dim=1), None


def _attend_in_groups(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, scale: float | None) -> Tensor:
    """Return [B, T, H, d]: query heads that share keys are taken for queries of one head, which copies no key.

    transformers does so where a row has one token; a row of beams has several.
    """
    batch, heads, tokens, _ = query.shape
    groups = heads // key.shape[1]
    packed = query.reshape(batch, key.shape[1], groups * tokens, -1)
    mask = mask.repeat(1, 1, groups, 1)
    attended = nn.functional.scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scale)
    return attended.reshape(batch, heads, tokens, -1).transpose(1, 2).contiguous()


@torch.no_grad()
def require_packing(llm: Any) -> None:
    """Check, by trying, that the LLM gives an example in a packed row what it gives to the example alone.

    It is left in evaluation mode.

    Raises:
        LLMError: If what stands before an example in its row, or where it stands, makes a difference.
    """
    llm.eval()
    embedding = llm.get_input_embeddings()
    first, second = _PROBE_LENGTHS
    embeds_TD = embedding(torch.arange(first + second, device=embedding.weight.device) % embedding.num_embeddings)
    own = torch.arange(second)
    alone = packed_logits(llm, embeds_TD[first:], [second], own).float()
    packed = packed_logits(llm, embeds_TD, [first, second], first + own).float()
    joined = packed_logits(llm, embeds_TD, [first + second], first + own).float()
    # Rounding depends on a row's length; beside what a context does to the logits it must be small.
    tolerance = 1e-3 if embeds_TD.dtype == torch.float32 else 0.2
    if packed.shape != alone.shape or not (packed - alone).norm() <= tolerance * (joined - alone).norm():
        raise LLMError(
            f"language models of type {llm.config.model_type} cannot be trained here: "
            "they do not keep examples apart that are packed into one row"
        )
