"""How frames are stored. Letters: T frames, C channels."""

import math
from collections.abc import Mapping
from typing import get_args

import torch
from torch import Tensor

from encoders.errors import EncoderError
from encoders.features import Codec, Fidelity

MOST_SNR_DB = 150.0
"""Frames that come back exactly count as this good; float32 itself ends about there."""
_INT8_MAX = 127


def quantise(frames_TC: Tensor, codec: Codec) -> dict[str, Tensor]:
    """Return the stored arrays of a clip's frames, on the device where they are.

    Key "" holds the frames [T, C] as float16 or int8; int8 has "scale" besides, float32 [C]: the largest magnitude of
    each channel of this clip, divided by 127. An int8 value is off by half a scale at most.

    Raises:
        EncoderError: If a value is not finite, or too large for float16.
    """
    frames_TC = frames_TC.float()
    largest = torch.finfo(torch.float16).max if codec == "float16" else torch.finfo(torch.float32).max
    fits = frames_TC.abs() <= largest  # False for NaN too
    if not fits.all():
        frame, channel = (~fits).nonzero()[0].tolist()
        value = frames_TC[frame, channel].item()
        raise EncoderError(f"frame {frame}, channel {channel} is {value}, which {codec} cannot hold")
    match codec:
        case "float16":
            return {"": frames_TC.half()}
        case "int8":
            scale_C = frames_TC.abs().amax(dim=0) / _INT8_MAX
            divisor_C = torch.where(scale_C > 0, scale_C, 1.0)  # a channel of zeros stays zeros
            steps_TC = (frames_TC / divisor_C).round_().clamp_(-_INT8_MAX, _INT8_MAX)
            return {"": steps_TC.to(torch.int8), "scale": scale_C}
        case _:
            raise ValueError(f"codec {codec!r} is not one of {', '.join(get_args(Codec))}")


def dequantise(arrays: Mapping[str, Tensor], codec: Codec) -> Tensor:
    """Return the frames, float32 [T, C], of what `quantise` made."""
    match codec:
        case "float16":
            return arrays[""].float()
        case "int8":
            return arrays[""].float() * arrays["scale"]
        case _:
            raise ValueError(f"codec {codec!r} is not one of {', '.join(get_args(Codec))}")


def measure_fidelity(computed_TC: Tensor, stored_TC: Tensor) -> Fidelity:
    """Compare the frames that come back, float32 [T, C], with the frames that an encoder computed.

    The ratio is 10 log10(sum x^2 / sum (x - y)^2) over all values, in float64. T is at least 1.
    """
    computed_TC, stored_TC = computed_TC.double(), stored_TC.double()
    error_TC = computed_TC - stored_TC
    cosine_T = torch.nn.functional.cosine_similarity(computed_TC, stored_TC)
    cosine_T = torch.where(error_TC.any(dim=1), cosine_T, 1.0)  # of two frames of zeros too
    numbers = [computed_TC.square().sum(), error_TC.square().sum(), cosine_T.mean(), cosine_T.min()]
    signal, lost, cosine, worst_cosine = torch.stack(numbers).tolist()  # one wait for the device
    snr_db = 10 * math.log10(min(max(signal / lost, 1e-15), 1e15)) if lost else MOST_SNR_DB
    return Fidelity(snr_db, cosine, worst_cosine)
