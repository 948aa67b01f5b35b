"""Attention whose relative position bias every query scales with a gate of its own (WavLM, section 3.2).

The bias of query i and key j is gate[i] · offsets[j - i]: in full it takes heads × P² values per clip, 107 MB for 30 s.
Neither kernel ever holds that. Letters: B clips, H heads, P patches, K width of a head, R offsets from 1 - P to P - 1.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from encoders.features import Kernel

Mask = Tensor | BlockMask | None


def padding_mask(kernel: Kernel, num_patches_B: Tensor, patches: int) -> Mask:
    """Return what the kernel wants to know about clips of these lengths, padded to `patches`; one for all layers."""
    if bool((num_patches_B == patches).all()):
        return None
    if kernel == "sdpa":
        is_padding_BP: Tensor = torch.arange(patches, device=num_patches_B.device) >= num_patches_B[:, None]
        return is_padding_BP

    def is_real(clip: Tensor, _head: Tensor, _query: Tensor, key: Tensor) -> Tensor:
        return key < num_patches_B[clip]

    return create_block_mask(is_real, len(num_patches_B), None, patches, patches, device=num_patches_B.device)


def gated_attention(
    q_BHPK: Tensor, k_BHPK: Tensor, v_BHPK: Tensor, gate_BHP: Tensor, offsets_HR: Tensor, *, mask: Mask, kernel: Kernel
) -> Tensor:
    """Return softmax(q·k / sqrt(K) + bias)·v over the keys that are no padding, [B, H, P, K].

    `mask` is what `padding_mask` gave for the same kernel.
    """
    if kernel == "flex":
        assert not isinstance(mask, Tensor)
        return _flex(q_BHPK, k_BHPK, v_BHPK, gate_BHP, offsets_HR, mask)
    assert not isinstance(mask, BlockMask)
    return _sdpa(q_BHPK, k_BHPK, v_BHPK, gate_BHP, offsets_HR, mask)


def _flex(
    q_BHPK: Tensor, k_BHPK: Tensor, v_BHPK: Tensor, gate_BHP: Tensor, offsets_HR: Tensor, mask: BlockMask | None
) -> Tensor:
    last = q_BHPK.shape[2] - 1

    def add_bias(score: Tensor, clip: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + gate_BHP[clip, head, query] * offsets_HR[head, key - query + last]

    attend: Callable[..., Tensor] = _compiled_flex() if q_BHPK.is_cuda else flex_attention  # type: ignore[assignment]
    return attend(q_BHPK, k_BHPK, v_BHPK, score_mod=add_bias, block_mask=mask)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=True)  # type: ignore[arg-type]  # clips have any number of patches


def _sdpa(
    q_BHPK: Tensor, k_BHPK: Tensor, v_BHPK: Tensor, gate_BHP: Tensor, offsets_HR: Tensor, is_padding_BP: Tensor | None
) -> Tensor:
    """Go head by head, so that the bias of one is all there is in memory.

    Queries run backwards: row i of the bias then begins at offset i, a view of the offsets and no copy of P² of them.
    """
    patches = q_BHPK.shape[2]
    q_BHPK, gate_BHP1 = q_BHPK.flip(2), gate_BHP.flip(2).unsqueeze(-1)
    bias_HPP = offsets_HR.unfold(1, patches, 1)
    out_BPHK = torch.empty_like(v_BHPK.transpose(1, 2))
    for head, bias_PP in enumerate(bias_HPP):
        mask_BPP = gate_BHP1[:, head] * bias_PP
        if is_padding_BP is not None:
            mask_BPP.masked_fill_(is_padding_BP.unsqueeze(1), float("-inf"))
        out_BPHK[:, :, head] = functional.scaled_dot_product_attention(
            q_BHPK[:, head, None], k_BHPK[:, head, None], v_BHPK[:, head, None], attn_mask=mask_BPP.unsqueeze(1)
        ).squeeze(1)
    return out_BPHK.flip(1).transpose(1, 2)
