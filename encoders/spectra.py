"""Power spectra of many frames, in pieces that fit into a processor's cache."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def rows_by_chunks(function: Callable[[Tensor], Tensor], frames: Sequence[Tensor]) -> Tensor:
    """Return function(rows of all frames), [sum of F, M], of every clip's [F, samples].

    A processor takes a few at a time, so that the values between the steps stay in its cache: four times as fast as a
    whole clip of 30 s. A GPU takes them all at once.
    """
    parts = [torch.cat(list(frames))] if frames[0].is_cuda else frames
    chunk = 100_000 if frames[0].is_cuda else 256
    return torch.cat([function(rows) for part in parts for rows in part.split(chunk)])


def power_spectrum(frames: Tensor, fft_samples: int) -> Tensor:
    """Return the squared magnitudes [F, fft_samples // 2 + 1] of windowed frames [F, samples], in their dtype."""
    squares = torch.view_as_real(torch.fft.rfft(frames, n=fft_samples)).square()
    return squares[..., 0] + squares[..., 1]
