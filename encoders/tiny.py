"""The real architectures at toy size with seeded weights: for tests, demos and runs without any download."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from encoders.beats.encoder import BeatsEncoder
from encoders.beats.network import Beats, BeatsConfig
from encoders.features import SPEECH_FRAMES, Kernel
from encoders.whisper.encoder import WhisperEncoder
from encoders.whisper.network import WhisperNetwork, WhisperSizes

# Random layers do nothing to bring out what matters, so the weights leave the content what it is: positions are small
# beside it, residual branches too, and a silent mel band gives about zero where it would drown the rest.
_POSITION_BOUND = 0.1
_BRANCH_SCALE = 0.3
_SILENT_LEVEL = -0.7


def tiny_whisper(
    *, seed: int = 0, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> WhisperEncoder:
    """Return a Whisper encoder of 2 layers, width 128, 80 mel bands; the same bits on every machine."""
    sizes = WhisperSizes(
        d_model=128,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=256,
        num_mel_bins=80,
        max_source_positions=SPEECH_FRAMES,
    )
    with torch.device("meta"):
        shapes = WhisperNetwork(sizes).state_dict()
    weights = random_weights(shapes, seed)
    for name in weights:
        if name.endswith(("fc2.weight", "out_proj.weight")):
            weights[name] *= _BRANCH_SCALE
    sums = [math.fsum(filter_.flatten().tolist()) for filter_ in weights["conv1.weight"]]  # fsum rounds once
    weights["conv1.bias"] = -_SILENT_LEVEL * torch.tensor(sums)
    return WhisperEncoder(sizes, weights, device=device, dtype=dtype)


def tiny_beats(
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: Kernel = "sdpa",
) -> BeatsEncoder:
    """Return a BEATs encoder of 2 layers, width 96; the same bits on every machine."""
    config = BeatsConfig(
        embed_dim=64,
        encoder_layers=2,
        encoder_embed_dim=96,
        encoder_ffn_embed_dim=192,
        encoder_attention_heads=4,
        conv_pos=16,
        conv_pos_groups=4,
    )
    with torch.device("meta"):
        shapes = Beats(config).state_dict()
    return BeatsEncoder(config, random_weights(shapes, seed), device=device, dtype=dtype, attention=attention)


def random_weights(shapes: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Draw float32 weights of these names and shapes: uniform, variance 1 / fan-in; norms and biases neutral.

    PCG64's uniform doubles are integers times 2^-53 and everything after them is a correctly rounded operation, so
    unlike normal draws or sinusoids the values do not depend on a machine's mathematical library.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    weights: dict[str, Tensor] = {}
    for name in sorted(shapes):
        shape = tuple(shapes[name].shape)
        if name.endswith("norm.weight") or name.endswith("grep_a"):
            weights[name] = torch.ones(shape)
        elif name.endswith("bias"):
            weights[name] = torch.zeros(shape)
        elif name.endswith("weight_g"):
            width = shapes[name.replace("weight_g", "weight_v")].shape[0]
            weights[name] = torch.full(shape, math.sqrt(width / shape[-1]))  # the norm that fan-in scaling would give
        else:
            bound = _POSITION_BOUND if "embed_positions" in name else math.sqrt(3 / math.prod(shape[1:]))
            values = (2 * generator.random(shape) - 1) * bound
            weights[name] = torch.from_numpy(values.astype(np.float32))
    return weights
