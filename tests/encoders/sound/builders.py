"""Sound files that tests write, damage and read."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from encoders.audio import (
    SAMPLE_RATE_HZ,
    AudioError,
    Segment,
)
from encoders.sound.clips import load_clip

KINDS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", None),
}


def sweep(seconds: float, rate_hz: int = SAMPLE_RATE_HZ) -> np.ndarray:
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    noise = np.random.default_rng(0).standard_normal(len(time))
    return 0.3 * np.sin(2 * np.pi * (200 + 40 * time) * time) + 0.02 * noise


def write(path: Path, wave: np.ndarray, rate_hz: int = SAMPLE_RATE_HZ, kind: str | None = None) -> str:
    path.write_bytes(encode(wave, rate_hz, kind or path.suffix[1:]))
    return str(path)


def rejected(path: str, *, start: float = 0.0, seconds: float | None = None) -> AudioError:
    with pytest.raises(AudioError) as caught:
        load_clip([Segment(path, start, seconds)])
    assert str(caught.value).startswith(f"{path}: {caught.value.stage}: ")
    return caught.value


def encode(wave: np.ndarray, rate_hz: int, kind: str, **options: str) -> bytes:
    container, subtype = KINDS[kind]
    channels = 1 if wave.ndim == 1 else wave.shape[1]
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", rate_hz, channels, format=container, subtype=subtype, **options) as file:
        for start in range(0, len(wave), rate_hz):  # libsndfile's Vorbis writer overflows its stack on large blocks
            file.write(wave[start : start + rate_hz])
    return buffer.getvalue()


def wav(*, rate_hz: int = SAMPLE_RATE_HZ, channels: int = 1, data_bytes: int = 64_000, byte_rate: int = 0) -> bytes:
    """Return a WAV of 64,000 bytes of sound whose header says what is asked."""
    head = struct.pack("<HHIIHH", 1, channels, rate_hz, byte_rate or 2 * channels * rate_hz, 2 * channels, 16)
    sound = (8_000 * np.sin(np.arange(32_000))).astype("<i2").tobytes()
    return b"RIFF\x24\xfa\0\0WAVEfmt \x10\0\0\0" + head + b"data" + struct.pack("<I", data_bytes) + sound


def recorded(kind: str, **options: str) -> bytes:
    return encode(sweep(2), SAMPLE_RATE_HZ, kind, **options)


def without_first_frame(mp3: bytes) -> bytes:
    """Return an MP3 without its Xing header, as encoders make them that know of none."""
    return mp3[mp3.index(mp3[:2], 2) :]
