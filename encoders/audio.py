"""Recordings of sound: which part of one is heard, how long it is, or the reason why it cannot be heard.

Without PyTorch, for those who only name recordings and read their headers; `encoders.sound.clips` has their waves.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from encoders.errors import EncoderError

SOUND_ENDINGS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3")
"""How names of recordings end, where a folder is looked through for them."""
SAMPLE_RATE_HZ = 16_000
CLIP_SECONDS = 30
CLIP_SAMPLES = SAMPLE_RATE_HZ * CLIP_SECONDS  # what Whisper was trained on
MOST_SECONDS = 24 * 3_600
"""[seconds] No clip may be longer, whatever is asked for."""
MIN_CLIP_SAMPLES = SAMPLE_RATE_HZ  # shorter clips are padded to one second
JOIN_SILENCE_SAMPLES = 1_600  # between two segments of one clip: 0.1 s


Stage = Literal["open", "format", "rate", "length", "decode", "samples", "features"]


@dataclass(frozen=True)
class Segment:
    recording: str
    """Path or URI, as `open_file` takes it."""
    start_seconds: float = 0.0
    duration_seconds: float | None = None
    """None: up to the recording's end. Where a corpus states it, give it: a recording that lasts less is rejected."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start_seconds) and self.start_seconds >= 0):
            raise EncoderError(f"{self.recording}: start_seconds {self.start_seconds} must be 0 or more")
        if self.duration_seconds is not None and not (
            math.isfinite(self.duration_seconds) and self.duration_seconds > 0
        ):
            raise EncoderError(f"{self.recording}: duration_seconds {self.duration_seconds} must be positive")


class AudioError(EncoderError):
    """A recording that cannot be heard as its manifest says; the clip is rejected, the job goes on."""

    def __init__(self, recording: str, stage: Stage, reason: str) -> None:
        super().__init__(recording, stage, reason)  # the arguments themselves, so that a pickled copy is equal
        self.recording = recording
        self.stage = stage
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.recording}: {self.stage}: {self.reason}"


class AbsentError(AudioError):
    """A recording that this machine does not find or may not read; another machine perhaps does."""


def clip_seconds(durations: Sequence[float], max_clip_seconds: float = CLIP_SECONDS) -> float:
    """Length of the clip made of segments of these lengths, after joining, padding and cutting."""
    joined = sum(durations) + (len(durations) - 1) * JOIN_SILENCE_SAMPLES / SAMPLE_RATE_HZ
    return min(max(joined, MIN_CLIP_SAMPLES / SAMPLE_RATE_HZ), float(max_clip_seconds))
