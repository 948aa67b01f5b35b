"""All streams of a clip: Whisper for speech and, unless left out, BEATs for everything else."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from encoders.beats import BeatsEncoder
from encoders.tiny import tiny_beats, tiny_whisper
from encoders.whisper import WhisperEncoder

T = TypeVar("T")


class ClipEncoder:
    """Encodes clips batch by batch and keeps the time of each part."""

    def __init__(self, speech: WhisperEncoder, audio: BeatsEncoder | None) -> None:
        self.speech = speech
        self.audio = audio
        self.timings: dict[str, float] = {}
        """Seconds spent in "mel", "whisper", "fbank" and "beats" by the last `encode`."""

    @property
    def widths(self) -> dict[str, int]:
        """Channels of each stream."""
        return {"speech": self.speech.width} | ({"audio": self.audio.width} if self.audio else {})

    @property
    def digests(self) -> dict[str, str]:
        """Weight digest of each stream's encoder."""
        return {"speech": self.speech.digest} | ({"audio": self.audio.digest} if self.audio else {})

    def encode(self, waves: Sequence[Tensor], *, batch_size: int = 8) -> list[dict[str, Tensor]]:
        """Return {"speech": [1500, C], "audio": [P, C]} of each 16 kHz wave, in the order given.

        Which clips share a batch follows from the lengths alone, longest first and equal ones in the order given, so
        the same clips always give the same bits.
        """
        self.timings = dict.fromkeys(("mel", "whisper", "fbank", "beats") if self.audio else ("mel", "whisper"), 0.0)
        by_length = sorted(range(len(waves)), key=lambda index: -len(waves[index]))
        streams: dict[int, dict[str, Tensor]] = {}
        for start in range(0, len(waves), batch_size):
            chosen = by_length[start : start + batch_size]
            for index, clip in zip(chosen, self._encode_batch([waves[index] for index in chosen]), strict=True):
                streams[index] = clip
        return [streams[index] for index in range(len(waves))]

    def _encode_batch(self, batch: list[Tensor]) -> list[dict[str, Tensor]]:
        mel = self._timed("mel", lambda: self.speech.log_mel(batch))
        speech = self._timed("whisper", lambda: self.speech.encode_mel(mel))
        if (beats := self.audio) is None:
            return [{"speech": frames} for frames in speech]
        banks = self._timed("fbank", lambda: [beats.filter_banks(wave) for wave in batch])
        audio = self._timed("beats", lambda: beats.encode_filter_banks(banks))
        return [{"speech": one, "audio": other} for one, other in zip(speech, audio, strict=True)]

    def _timed(self, part: str, work: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = work()
        if self.speech.device.type == "cuda":
            torch.cuda.synchronize(self.speech.device)
        self.timings[part] += time.perf_counter() - start
        return result


def load_clip_encoder(
    *,
    whisper: str,
    beats: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ClipEncoder:
    """Load both encoders onto one device.

    `whisper` is a Hugging Face Whisper folder or "tiny"; `beats` is a released checkpoint, "tiny", or "none".

    Raises:
        ValueError: If a path does not exist or does not hold what is expected there.
    """
    return ClipEncoder(
        _load_whisper(whisper, device, dtype), None if beats == "none" else _load_beats(beats, device, dtype)
    )


def _load_whisper(path: str, device: str | torch.device, dtype: torch.dtype) -> WhisperEncoder:
    if path == "tiny":
        return tiny_whisper(device=device, dtype=dtype)
    if not Path(path).is_dir():
        raise ValueError(f'whisper={path}: no such folder; expected a Whisper folder with config.json, or "tiny"')
    return WhisperEncoder.from_pretrained(path, device=device, dtype=dtype)


def _load_beats(path: str, device: str | torch.device, dtype: torch.dtype) -> BeatsEncoder:
    if path == "tiny":
        return tiny_beats(device=device, dtype=dtype)
    if not Path(path).is_file():
        raise ValueError(f'beats={path}: no such file; expected a BEATs checkpoint (.pt), "tiny" or "none"')
    return BeatsEncoder.from_checkpoint(path, device=device, dtype=dtype)
