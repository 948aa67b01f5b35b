"""What the encoders must compute, and how fast a machine multiplies: the floor under every measured time."""

import time
from collections.abc import Callable

import torch

from encoders.beats.network import BeatsConfig, count_patches
from encoders.whisper.network import WhisperSizes


def layers_flop(layers: int, width: int, ffn_width: int, frames: int) -> float:
    """Return the operations of transformer layers on one sequence, a multiply-add being two."""
    return layers * frames * (2 * (4 * width**2 + 2 * width * ffn_width) + 4 * frames * width)


def whisper_flop(sizes: WhisperSizes) -> float:
    """Return the operations of Whisper's encoder on one clip, always 30 s."""
    width, frames = sizes.d_model, sizes.max_source_positions
    convolutions = 2 * 3 * (2 * frames * sizes.num_mel_bins * width + frames * width**2)
    return convolutions + layers_flop(sizes.encoder_layers, width, sizes.encoder_ffn_dim, frames)


def beats_flop(config: BeatsConfig, seconds: float) -> float:
    """Return the operations of BEATs on one clip, its position convolution computed directly."""
    width, patches = config.encoder_embed_dim, count_patches(round(seconds * 100) - 2)
    position = 2 * patches * width * width // config.conv_pos_groups * config.conv_pos
    return position + layers_flop(config.encoder_layers, width, config.encoder_ffn_embed_dim, patches)


def timed(work: Callable[[], object]) -> float:
    """Return the seconds of a call, to the end of what it started on a GPU."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def matrix_speed(size: int, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """Return the FLOP/s of the product of two random square matrices, the best of ten."""
    left, right = torch.randn(2, size, size, device=device, dtype=dtype)
    return 2 * size**3 / min(timed(lambda: left @ right) for _ in range(10))
