"""Whisper's encoder, frozen. Letters: B clips, M mel bands, T mel frames (10 ms), D width."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional
from transformers.audio_utils import mel_filter_bank

from encoders.audio import CLIP_SAMPLES, SAMPLE_RATE_HZ
from encoders.digest import key_difference, weights_digest
from encoders.errors import EncoderError
from encoders.features import SPEECH_FRAMES
from encoders.spectra import power_spectrum, rows_by_chunks
from encoders.whisper.network import WhisperNetwork, WhisperSizes

_FFT_SAMPLES = 400
_HOP_SAMPLES = 160
_MEL_FRAMES = CLIP_SAMPLES // _HOP_SAMPLES
_FLOOR = 1e-10
_SWITCHES = {"activation_function": "gelu", "scale_embedding": False}  # of every released Whisper


class WhisperEncoder:
    """Waves to frames: 30 s log-mel, then Whisper's encoder, all 1500 frames whatever the clip's length."""

    def __init__(
        self,
        sizes: WhisperSizes,
        state: Mapping[str, Tensor],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Build the network from `state`, named as in transformers' `WhisperEncoder`.

        Raises:
            EncoderError: If names or shapes differ from what `sizes` describes.
        """
        if sizes.max_source_positions != SPEECH_FRAMES:
            raise EncoderError(f"max_source_positions is {sizes.max_source_positions}; 30 s clips need {SPEECH_FRAMES}")
        self.digest = weights_digest(state, asdict(sizes))
        self.width = sizes.d_model
        self.device = torch.device(device)
        self.dtype = dtype
        with torch.device("meta"):  # nothing is initialised that the weights replace anyway
            module = WhisperNetwork(sizes)
        _load_strictly(module, state)
        self.module = module.to(self.device, dtype).eval().requires_grad_(False)
        # The same table as in transformers' feature extractor.
        filters = mel_filter_bank(
            num_frequency_bins=1 + _FFT_SAMPLES // 2,
            num_mel_filters=sizes.num_mel_bins,
            min_frequency=0.0,
            max_frequency=SAMPLE_RATE_HZ / 2,
            sampling_rate=SAMPLE_RATE_HZ,
            norm="slaney",
            mel_scale="slaney",
        )
        self._filters_KM = torch.from_numpy(filters).to(self.device, torch.float32)
        self._window = torch.hann_window(_FFT_SAMPLES, device=self.device)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "WhisperEncoder":
        """Load the encoder, and nothing else, of a Whisper folder in the Hugging Face layout (safetensors).

        Raises:
            EncoderError: If the folder is not a Whisper model or its weights do not fit its config.
        """
        folder = Path(path)
        config_path = folder / "config.json"
        if not config_path.is_file():
            raise EncoderError(f"{folder}: no config.json; expected a Whisper folder such as openai/whisper-large-v2")
        config: dict[str, Any] = json.loads(config_path.read_text())
        if config.get("model_type") != "whisper":
            raise EncoderError(f"{config_path}: model_type is {config.get('model_type')!r}, expected 'whisper'")
        for switch, value in _SWITCHES.items():
            if config.get(switch, value) != value:
                raise EncoderError(f"{config_path}: {switch} is {config[switch]!r}, every Whisper has {value!r}")
        missing = [field.name for field in fields(WhisperSizes) if not isinstance(config.get(field.name), int)]
        if missing:
            raise EncoderError(f"{config_path}: {missing[0]} is {config.get(missing[0])!r}, expected a number")
        sizes = WhisperSizes(**{field.name: config[field.name] for field in fields(WhisperSizes)})
        try:
            return cls(sizes, _read_encoder_state(folder), device=device, dtype=dtype)
        except EncoderError as error:
            raise EncoderError(f"{folder}: {error}") from error

    @torch.inference_mode()
    def log_mel(self, waves: Sequence[Tensor]) -> Tensor:
        """Return float32 [B, M, 3000]: what transformers' WhisperFeatureExtractor gives for each wave alone.

        Waves are [samples] at 16 kHz in [-1, 1). They count as padded with zeros to 30 s, of which nothing is computed.

        Raises:
            EncoderError: If a wave is longer than 30 s.
        """
        for wave in waves:
            if len(wave) > CLIP_SAMPLES:
                raise ValueError(f"a clip has {len(wave)} samples, at most {CLIP_SAMPLES} are encoded")
        frames = [self._frames(wave.to(self.device, torch.float32)) for wave in waves]
        with torch.autocast(self.device.type, enabled=False):
            mel_FM = rows_by_chunks(
                lambda rows: power_spectrum(rows * self._window, _FFT_SAMPLES) @ self._filters_KM, frames
            )
        log_FM = mel_FM.clamp_(min=_FLOOR).log10_()
        log_BMT = torch.full((len(waves), log_FM.shape[1], _MEL_FRAMES), math.log10(_FLOOR), device=self.device)
        for clip_MT, heard_FM in zip(log_BMT, log_FM.split([len(clip) for clip in frames]), strict=True):
            clip_MT[:, : len(heard_FM)] = heard_FM.T
        loudest = log_BMT.amax(dim=(1, 2), keepdim=True)
        return log_BMT.clamp_(min=loudest - 8.0).add_(4.0).div_(4.0)

    def _frames(self, wave: Tensor) -> Tensor:
        """Return the frames [F, 400] around every 10 ms that reach into the wave; all others of the 3000 are zeros."""
        padded = functional.pad(wave, (0, min(_FFT_SAMPLES, CLIP_SAMPLES - len(wave))))
        centred = functional.pad(padded.unsqueeze(0), (_FFT_SAMPLES // 2, _FFT_SAMPLES // 2), mode="reflect")[0]
        return centred.unfold(0, _FFT_SAMPLES, _HOP_SAMPLES)[:_MEL_FRAMES]

    @torch.inference_mode()
    def encode_mel(self, mel_BMT: Tensor) -> Tensor:
        """Return the frames [B, 1500, D] of a log-mel [B, M, 3000], in the encoder's dtype on its device."""
        with torch.autocast(self.device.type, enabled=False):
            frames: Tensor = self.module(mel_BMT.to(self.device, self.dtype))
        return frames

    def encode(self, waves: Sequence[Tensor], *, batch_size: int = 8) -> list[Tensor]:
        """Return the frames [1500, D] of each 16 kHz wave, `batch_size` at a time in the order given."""
        batches = (waves[start : start + batch_size] for start in range(0, len(waves), batch_size))
        return [frames for batch in batches for frames in self.encode_mel(self.log_mel(batch))]


def _load_strictly(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    if difference := key_difference(set(shapes), set(state)):
        raise EncoderError(f"weights of the encoder do not fit: {difference}")
    for name, tensor in state.items():
        if tuple(tensor.shape) != shapes[name]:
            raise EncoderError(f"{name} has shape {tuple(tensor.shape)}, the config says {shapes[name]}")
    module.load_state_dict(state, assign=True)


def _read_encoder_state(folder: Path) -> dict[str, Tensor]:
    """Read the encoder's tensors, as stored, from one safetensors file or from the shards an index names."""
    index_path = folder / "model.safetensors.index.json"
    if index_path.is_file():
        weight_map: dict[str, str] = json.loads(index_path.read_text())["weight_map"]
        files = sorted({file for name, file in weight_map.items() if _encoder_name(name)})
    else:
        files = ["model.safetensors"]
    state: dict[str, Tensor] = {}
    for file in files:
        if not (folder / file).is_file():
            raise EncoderError(f"no {file}; the weights must be in safetensors form")
        with safe_open(folder / file, framework="pt") as weights:
            state |= {short: weights.get_tensor(name) for name in weights.keys() if (short := _encoder_name(name))}  # noqa: SIM118
    return state


def _encoder_name(name: str) -> str | None:
    """Return a tensor's name inside the encoder, None for the decoder's."""
    for prefix in ("model.encoder.", "encoder."):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return None
