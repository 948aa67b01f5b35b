"""A frozen encoder from outside this project, as the audio stream of a cache in BEATs' place.

It is named `module:function` where a checkpoint of BEATs would be. The function takes `device=` and `dtype=` and gives
an object with what `FrameEncoder` says; the module must be importable wherever clips are encoded.
"""

import importlib
import re
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from encoders.audio import SAMPLE_RATE_HZ
from encoders.errors import EncoderError
from encoders.features import SAMPLES_PER_FRAME

TRIED_SAMPLES = (SAMPLE_RATE_HZ, 40_017, 27_300)
"""Lengths of the waves on which an encoder is tried; none of the others is a multiple of a frame."""
MOST_DIFFERENCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Between a wave's frames alone and in a batch, in parts of their standard deviation."""
FEWER_FRAMES, MORE_FRAMES = 10, 1
"""An encoder that pads nothing gives a frame less than 50 a second; one that works in larger steps up to a step."""


class FrameEncoder(Protocol):
    """What an encoder has to have."""

    digest: str
    """Hexadecimal; of everything that its frames depend on: weights, sizes, which layer. `encoders.digest` helps."""
    width: int
    """[channels] Of a frame."""

    def encode(self, waves: Sequence[Tensor]) -> list[Tensor]:
        """Return floating frames [T, width] of each 16 kHz wave, float32 [samples] on the CPU, 50 frames a second.

        A wave gives the same frames alone and in any batch.
        """
        ...


class AudioEncoder(Protocol):
    """What encodes the audio stream: clips are prepared together, and encoded in batches of like lengths."""

    digest: str
    width: int

    def prepare(self, waves: Sequence[Tensor]) -> list[Tensor]: ...

    def count_frames(self, prepared: Tensor) -> int: ...

    def encode_prepared(self, prepared: Sequence[Tensor]) -> list[Tensor]: ...


class OwnEncoder:
    """A `FrameEncoder`, tried once and watched from then on."""

    def __init__(self, name: str, encoder: FrameEncoder, *, dtype: torch.dtype) -> None:
        """Try the encoder on three waves, alone and together.

        Raises:
            EncoderError: If it lacks something, its frames are not 50 a second, or depend on the batch.
        """
        missing = [part for part in ("digest", "width", "encode") if not hasattr(encoder, part)]
        if missing:
            raise EncoderError(f"{name}: what it returns has no {', '.join(missing)}")
        if not (isinstance(encoder.digest, str) and re.fullmatch("[0-9a-f]{16,}", encoder.digest)):
            raise EncoderError(f"{name}: digest is {encoder.digest!r}; expected 16 or more hexadecimal digits")
        if not (isinstance(encoder.width, int) and encoder.width > 0):
            raise EncoderError(f"{name}: width is {encoder.width!r}; expected a number of channels")
        self.digest, self.width = encoder.digest, encoder.width
        self._name, self._encoder = name, encoder
        self._require_batch_invariance(MOST_DIFFERENCE.get(dtype, 1e-3))

    def prepare(self, waves: Sequence[Tensor]) -> list[Tensor]:
        """Return the waves as they are."""
        return list(waves)

    def count_frames(self, prepared: Tensor) -> int:
        """Return about how many frames a wave gives."""
        return -(-len(prepared) // SAMPLES_PER_FRAME)

    def encode_prepared(self, prepared: Sequence[Tensor]) -> list[Tensor]:
        """Return the frames [T, width] of each wave.

        Raises:
            EncoderError: If they are not what `FrameEncoder` says.
        """
        with torch.inference_mode():
            frames = self._encoder.encode(prepared)
        if len(frames) != len(prepared):
            raise EncoderError(f"{self._name}: gave {len(frames)} clips of {len(prepared)}")
        for wave, frames_TC in zip(prepared, frames, strict=True):
            expected = self.count_frames(wave)
            if frames_TC.ndim != 2 or frames_TC.shape[1] != self.width:
                raise EncoderError(f"{self._name}: gave {list(frames_TC.shape)}, expected [frames, {self.width}]")
            if not expected - FEWER_FRAMES <= len(frames_TC) <= expected + MORE_FRAMES:
                raise EncoderError(
                    f"{self._name}: gave {len(frames_TC)} frames of {len(wave)} samples; 50 a second are {expected}"
                )
        return [frames_TC[: self.count_frames(wave)] for wave, frames_TC in zip(prepared, frames, strict=True)]

    def _require_batch_invariance(self, most: float) -> None:
        noise = torch.Generator().manual_seed(0)
        waves = [0.1 * torch.randn(samples, generator=noise) for samples in TRIED_SAMPLES]
        together = self.encode_prepared(waves)
        for wave, frames_TC in zip(waves, together, strict=True):
            (alone_TC,) = self.encode_prepared([wave])
            if alone_TC.shape != frames_TC.shape:
                raise EncoderError(
                    f"{self._name}: a wave has {len(alone_TC)} frames alone, {len(frames_TC)} in a batch"
                )
            difference = float((alone_TC.float() - frames_TC.float()).abs().max() / alone_TC.float().std())
            if not difference <= most:
                raise EncoderError(
                    f"{self._name}: a wave's frames in a batch differ from those alone by {difference:.2g} standard "
                    f"deviations, more than {most:g}; encode each wave by itself, or mask its padding in every layer"
                )


def load_own_encoder(name: str, *, device: str | torch.device, dtype: torch.dtype) -> OwnEncoder:
    """Import `module:function` and call the function.

    Raises:
        EncoderError: If there is no such module or function, or what it returns is not a `FrameEncoder`.
    """
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and lacks something itself
        raise EncoderError(
            f"beats={name}: no module {error.name}; PYTHONPATH says where it is, on every node"
        ) from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise EncoderError(f"beats={name}: {module_name} has no function {function_name}")
    return OwnEncoder(name, function(device=torch.device(device), dtype=dtype), dtype=dtype)
