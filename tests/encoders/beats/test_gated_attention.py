"""Covers encoders.features."""

import pytest
import torch

from encoders.beats.gated_attention import gated_attention, padding_mask
from encoders.features import Kernel

KERNELS: tuple[Kernel, ...] = ("sdpa", "flex")


def inputs(clips: int, heads: int, patches: int, width: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(clips, patches, heads, width, generator=generator).transpose(1, 2) for _ in range(3))
    gate = torch.rand(clips, heads, patches, generator=generator) * 2
    return q, k, v, gate, torch.randn(heads, 2 * patches - 1, generator=generator)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("lengths", [[40, 40], [40, 8], [16, 40]])
def test_both_kernels_follow_the_formula(kernel: Kernel, lengths: list[int]) -> None:
    q, k, v, gate, offsets = inputs(2, 3, 40, 8)
    bias = torch.stack([offsets[:, 39 - i : 79 - i] for i in range(40)], dim=1)  # row i: offsets j - i
    mask = padding_mask(kernel, torch.tensor(lengths), 40)
    got = gated_attention(q, k, v, gate, offsets, mask=mask, kernel=kernel)
    for clip, length in enumerate(lengths):
        logits = q[clip].double() @ k[clip].double().transpose(1, 2) / 8**0.5 + gate[clip].unsqueeze(-1) * bias
        expected = logits[:, :length, :length].softmax(-1) @ v[clip, :, :length].double()
        torch.testing.assert_close(got[clip, :, :length].double(), expected, atol=2e-6, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_flex_equals_sdpa(dtype: torch.dtype) -> None:
    for lengths in ([248, 96], [744, 744, 8]):
        parts = [part.cuda() for part in inputs(len(lengths), 12, max(lengths), 64)]
        expected, got = (
            gated_attention(
                *(part.to(dtype) for part in parts),  # type: ignore[arg-type]
                mask=padding_mask(kernel, torch.tensor(lengths, device="cuda"), max(lengths)),
                kernel=kernel,
            )
            for kernel in KERNELS
        )
        for clip, length in enumerate(lengths):
            tolerance = 1e-4 if dtype == torch.float32 else 3e-2
            torch.testing.assert_close(got[clip, :, :length], expected[clip, :, :length], atol=tolerance, rtol=0)
