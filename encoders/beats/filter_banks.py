"""Kaldi's log mel filter banks as BEATs reads them. Letters: F frames (10 ms), M mel bands, K FFT bins."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from encoders.audio import SAMPLE_RATE_HZ
from encoders.features import BANK_HOP_SAMPLES, BANK_SAMPLES, NUM_MEL_BANDS
from encoders.spectra import power_spectrum, rows_by_chunks

_FFT_SAMPLES = 512
_LOWEST_HZ = 20.0
_PREEMPHASIS = 0.97
_MEAN, _STD = 15.41663, 6.55582  # BEATs' statistics of AudioSet


class FilterBanks:
    """The window and mel table on one device, made once."""

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self._window = povey_window().to(self.device)
        self._mel_KM = mel_table().T.contiguous().to(self.device)

    def __call__(self, wave: Tensor) -> Tensor:
        """Return the normalised log energies, float32 [F, M], F = 1 + (samples - 400) // 160.

        The wave is [samples] at 16 kHz in [-1, 1). All steps up to the power run in float64: in float32 quiet frames
        are off by 4e-4, and half precision overflows. No dither, no energy column, whole frames only.

        Raises:
            ValueError: If the wave is shorter than one frame of 400 samples.
        """
        return self.batch([wave])[0]

    @torch.inference_mode()
    def batch(self, waves: Sequence[Tensor]) -> list[Tensor]:
        """Return [F, M] of each wave, the frames of all computed together."""
        for wave in waves:
            if len(wave) < BANK_SAMPLES:
                raise ValueError(f"a clip has {len(wave)} samples, one frame takes {BANK_SAMPLES}")
        frames = [wave.to(self.device).unfold(0, BANK_SAMPLES, BANK_HOP_SAMPLES) for wave in waves]
        with torch.autocast(self.device.type, enabled=False):
            energy_FM = rows_by_chunks(self._energies, frames)
        log_FM = energy_FM.clamp_(min=torch.finfo(torch.float32).eps).log_()
        return list(log_FM.sub_(_MEAN).div_(2 * _STD).split([len(clip) for clip in frames]))

    def _energies(self, frames: Tensor) -> Tensor:
        frames = frames.double() * 32768
        frames = frames - frames.mean(dim=1, keepdim=True)
        emphasised = frames.clone()
        emphasised[:, 1:].sub_(frames[:, :-1], alpha=_PREEMPHASIS)
        emphasised[:, 0].mul_(1 - _PREEMPHASIS)
        return power_spectrum(emphasised.mul_(self._window), _FFT_SAMPLES)[:, :-1].float() @ self._mel_KM


def povey_window() -> Tensor:
    """Kaldi's window: a Hann window to the power of 0.85, float64 [400]."""
    return torch.hann_window(BANK_SAMPLES, periodic=False, dtype=torch.float64).pow(0.85)


def mel_table() -> Tensor:
    """Triangles linear on the mel scale from 20 Hz to 8 kHz, float32 [M, K] with K = 256: the last bin has no weight.

    Computed in float32 as Kaldi and torchaudio do; a table computed in float64 differs by up to 6e-5 in log energy.
    Only the logarithm is taken in float64 and rounded: PyTorch's float32 logarithm differs in the last bit from
    processor to processor.
    """
    low, high = (1127.0 * math.log(1.0 + hz / 700.0) for hz in (_LOWEST_HZ, SAMPLE_RATE_HZ / 2))
    corners = low + torch.arange(NUM_MEL_BANDS + 2) * ((high - low) / (NUM_MEL_BANDS + 1))
    left, centre, right = corners.unfold(0, 3, 1).unsqueeze(-1).unbind(1)  # [M, 1] each
    ratios_K = 1.0 + SAMPLE_RATE_HZ / _FFT_SAMPLES * torch.arange(_FFT_SAMPLES // 2) / 700.0
    mel_K = 1127.0 * ratios_K.double().log().float()
    return torch.minimum((mel_K - left) / (centre - left), (right - mel_K) / (right - centre)).clamp(min=0.0)
