"""Sound that is to be heard: read from a recording, from bytes or from an array, all by the same decoder."""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import soundfile as sf
from torch import Tensor

from encoders.audio import CLIP_SECONDS, JOIN_SILENCE_SAMPLES, SAMPLE_RATE_HZ, Segment
from encoders.sound.clips import load_clip
from encoders.sound.sound_file import measure_seconds
from pipelines import storage
from pipelines.errors import UserError

ARRAY = "the array"


@dataclass(frozen=True)
class Wave:
    """What the encoders are to hear, and of how much sound it is the beginning."""

    samples: Tensor
    """[samples] float32, 16 kHz, 1 s to `max_clip_seconds`: a shorter sound is followed by silence."""
    seconds: float
    """[seconds] Length of all that was given."""


def read_wave(recording: str, *, channel: str, max_clip_seconds: float = CLIP_SECONDS) -> Wave:
    """Read the first `max_clip_seconds` of a recording by its path or URI.

    Raises:
        AudioError: If it is missing or damaged, or no sound.
        OSError: If storage fails.
    """
    return _read([recording], channel, storage.open_file, max_clip_seconds)


def read_parts(
    parts: Sequence[bytes],
    *,
    channel: str,
    max_clip_seconds: float = CLIP_SECONDS,
    most_seconds: float = math.inf,
) -> Wave:
    """Decode the contents of sound files and join them, with 0.1 s of silence between two; nothing is written.

    Raises:
        AudioError: If one of them, `audio 1` and so on, is damaged or no sound.
        UserError: If they last longer than `most_seconds`.
    """
    contents = {f"audio {number}": content for number, content in enumerate(parts, 1)}
    return _read(list(contents), channel, lambda name: io.BytesIO(contents[name]), max_clip_seconds, most_seconds)


def wave_of_array(samples: Any, rate_hz: int, *, channel: str, max_clip_seconds: float = CLIP_SECONDS) -> Wave:
    """Return the first `max_clip_seconds` of samples [samples] or [samples, channels], full scale ±1, at any rate.

    Raises:
        AudioError: If the rate is not plausible, or samples are no finite numbers.
        UserError: If the array has another shape, or is empty.
    """
    array = np.asarray(samples, np.float32)
    if array.ndim not in (1, 2) or not array.size:
        raise UserError(f"{ARRAY} has shape {list(array.shape)}: must be [samples] or [samples, channels]")
    buffer = io.BytesIO()
    sf.write(buffer, array, rate_hz, format="WAV", subtype="FLOAT")
    return _read([ARRAY], channel, lambda _: io.BytesIO(buffer.getvalue()), max_clip_seconds)


def _read(
    recordings: Sequence[str],
    channel: str,
    open_file: Callable[[str], BinaryIO],
    max_clip_seconds: float,
    most_seconds: float = math.inf,
) -> Wave:
    lengths = [measure_seconds(recording, open_file=open_file) for recording in recordings]
    seconds = sum(lengths) + (len(lengths) - 1) * JOIN_SILENCE_SAMPLES / SAMPLE_RATE_HZ
    if seconds > most_seconds:
        raise UserError(f"the sound lasts {seconds:.1f} s, more than the {most_seconds:g} s that are taken")
    segments = [Segment(recording) for recording in recordings]
    return Wave(load_clip(segments, channel=channel, max_clip_seconds=max_clip_seconds, open_file=open_file), seconds)
