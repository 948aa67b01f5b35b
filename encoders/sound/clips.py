"""Clips: 16 kHz mono waves read from one or more segments of recordings, or the reason why they cannot be."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchaudio.functional import resample

from encoders.audio import CLIP_SAMPLES, JOIN_SILENCE_SAMPLES, MIN_CLIP_SAMPLES, SAMPLE_RATE_HZ, AudioError, Segment
from encoders.sound.containers import check_end
from encoders.sound.recordings import OpenFile, open_local
from encoders.sound.sound_file import SoundFile, open_sound

SEGMENT_SLACK_SECONDS = 0.05
"""A segment may end this much after its recording: manifests round their times."""
OPUS_PREROLL_SECONDS = 10.0
"""Decoded and dropped before an Opus segment: the decoder's memory makes the samples after a bare seek wrong by up to
3e-3 for seconds."""


def load_clip(
    segments: Sequence[Segment],
    *,
    channel: Literal["first", "mean"] = "first",
    open_file: OpenFile = open_local,
) -> Tensor:
    """Return what the encoders hear of `segments`: float32 [samples] at 16 kHz, 1 to 30 s.

    Segments are joined with 0.1 s of silence, padded with zeros to 1 s and cut at 30 s; nothing after that is decoded.
    A segment has the samples of the fully decoded recording (MP3: to 1e-7; Opus: nearly always, after a
    pre-roll), resampled after the cut with torchaudio's windowed sinc. No damage passes in what is decoded of FLAC,
    Vorbis and Opus, which have checksums. In WAV and MP3 it may change samples; that it shortens a clip is noticed
    where a header states the length, but for MP3's own padding, at most 0.3 s.

    Raises:
        AudioError: If a recording is missing, damaged, shorter than stated or not plausible as sound.
        OSError: If storage fails while reading; that is no fault of the recording.
    """
    if not segments:
        raise ValueError("a clip needs at least one segment")
    clip = torch.zeros(CLIP_SAMPLES)
    filled = -JOIN_SILENCE_SAMPLES
    for segment in segments:
        filled += JOIN_SILENCE_SAMPLES
        if filled >= CLIP_SAMPLES:
            break
        wave = _read_segment(segment, CLIP_SAMPLES - filled, channel, open_file)
        clip[filled : filled + len(wave)] = wave
        filled += len(wave)
    return clip[: max(filled, MIN_CLIP_SAMPLES)].clone()  # a view would drag all 30 s along when it is sent


def _read_segment(segment: Segment, limit_samples: int, channel: str, open_file: OpenFile) -> Tensor:
    """Return at most the first `limit_samples` 16 kHz samples of a segment, float32 [samples]."""
    with open_sound(segment.recording, open_file) as (sound, file, total):
        rate_hz = sound.samplerate
        # The resampling filter reaches a few samples past the cut.
        limit = math.ceil((limit_samples + 16) * rate_hz / SAMPLE_RATE_HZ) + 16
        frames = _decode(sound, total, segment, limit)
        if segment.duration_seconds is None and len(frames) < limit:
            check_end(sound.format, file, total, rate_hz)

    mono = frames[:, 0] if channel == "first" else frames.mean(axis=1)
    wave = torch.from_numpy(mono.copy())
    if not wave.isfinite().all():
        place = segment.start_seconds + int((~wave.isfinite()).nonzero()[0]) / rate_hz
        raise AudioError(segment.recording, "samples", f"not a finite number at {place:g} s")
    resampled: Tensor = resample(wave, rate_hz, SAMPLE_RATE_HZ)
    return resampled[:limit_samples]


def _decode(sound: SoundFile, total: int | None, segment: Segment, limit: int) -> np.ndarray:
    """Return at most `limit` of a recording's `total` frames at its own rate, float32 [frames, channels]."""
    rate_hz = sound.samplerate
    start = round(segment.start_seconds * rate_hz)
    available = (sound.frames if total is None else total) - start
    asked = available if segment.duration_seconds is None else round(segment.duration_seconds * rate_hz)
    slack = round(SEGMENT_SLACK_SECONDS * rate_hz)
    if available <= 0 or asked > available + slack:
        end = "its end" if segment.duration_seconds is None else f"{(start + asked) / rate_hz:g} s"
        reason = f"lasts {(start + available) / rate_hz:g} s, asked for {segment.start_seconds:g} s to {end}"
        raise AudioError(segment.recording, "length", reason)

    count = least = min(asked, available, limit)
    if total is None:  # the end shows only when it comes
        least = 1 if segment.duration_seconds is None else count - slack
    preroll = min(start, round(OPUS_PREROLL_SECONDS * rate_hz)) if sound.subtype == "OPUS" else 0
    if start > preroll:
        sound.seek(start - preroll)
    frames: np.ndarray = sound.read(preroll + count, dtype="float32", always_2d=True)[preroll:]
    if len(frames) < max(least, 1):
        reason = f"gave {len(frames)} of {count} frames from {segment.start_seconds:g} s on"
        raise AudioError(segment.recording, "decode", reason)
    return frames
