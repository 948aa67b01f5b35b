"""Clips: 16 kHz mono waves read from one or more segments of recordings, or the reason why they cannot be."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torchaudio.functional import resample

from encoders.audio import CLIP_SAMPLES, JOIN_SILENCE_SAMPLES, MIN_CLIP_SAMPLES, SAMPLE_RATE_HZ, AudioError, Segment
from encoders.sound.containers import check_end
from encoders.sound.extent import Extent, Seekable
from encoders.sound.mp3 import find_frames
from encoders.sound.recordings import OpenFile, open_local
from encoders.sound.sound_file import SoundFile, open_sound

SEGMENT_SLACK_SECONDS = 0.05
"""A segment may end this much after its recording: manifests round their times."""
PREROLL_SECONDS = {"OPUS": 10.0, "MPEG_LAYER_III": 2.0}
"""Decoded and dropped before a segment, by codec. The samples after a bare seek are wrong: Opus' by up to 3e-3 for
seconds, from the decoder's memory; MP3's by up to 0.8 for 0.14 s, where a frame lies in part in those before it."""
_SKIPPED_AT_ONCE = 2**20  # frames
AUDIBLE = 1e-3
"""Largest sample of what counts as sound beside a silent channel; full scale is 1."""


def load_clip(
    segments: Sequence[Segment],
    *,
    channel: str = "first",
    open_file: OpenFile = open_local,
    on_doubt: Callable[[AudioError], None] | None = None,
) -> Tensor:
    """Return what the encoders hear of `segments`: float32 [samples] at 16 kHz, 1 to 30 s.

    Segments are joined with 0.1 s of silence, padded with zeros to 1 s and cut at 30 s; nothing after that is decoded.
    A segment has the samples of the fully decoded recording (MP3: to float32's last bit; Opus: nearly always, after a
    pre-roll), resampled after the cut with torchaudio's windowed sinc. No damage passes in what is decoded of FLAC,
    Vorbis and Opus, which have checksums. In WAV and MP3 it may change samples; that it shortens a clip is noticed
    where a header states the length, but for MP3's own padding, at most 0.3 s.

    `channel` is first, mean (of all), or a number from 0.

    `on_doubt` is told of each recording that is heard up to an end which may not be its own, as in an Ogg file whose
    last page is not marked as such, or whose heard channel is silent where another one sounds. Where that is not to be
    heard, it raises what it is given.

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
        wave = _read_segment(segment, CLIP_SAMPLES - filled, channel, open_file, on_doubt)
        clip[filled : filled + len(wave)] = wave
        filled += len(wave)
    return clip[: max(filled, MIN_CLIP_SAMPLES)].clone()  # a view would drag all 30 s along when it is sent


def _read_segment(
    segment: Segment,
    limit_samples: int,
    channel: str,
    open_file: OpenFile,
    on_doubt: Callable[[AudioError], None] | None,
) -> Tensor:
    """Return at most the first `limit_samples` 16 kHz samples of a segment, float32 [samples]."""
    with open_sound(segment.recording, open_file) as (sound, file, extent):
        rate_hz = sound.samplerate
        # The resampling filter reaches a few samples past the cut.
        limit = math.ceil((limit_samples + 16) * rate_hz / SAMPLE_RATE_HZ) + 16
        frames = _decode(sound, file, extent, segment, limit)
        if segment.duration_seconds is None and len(frames) < limit:
            check_end(sound.format, file, extent.frames, rate_hz)
            if extent.doubt and on_doubt is not None:
                on_doubt(AudioError(segment.recording, "length", extent.doubt))

    mono = _heard(frames, channel, segment.recording)
    if on_doubt is not None and not mono.any() and np.abs(frames).max() > AUDIBLE:
        sounding = int(np.abs(frames).max(axis=0).argmax())
        on_doubt(AudioError(segment.recording, "samples", f"the heard channel is silent, channel {sounding} is not"))
    wave = torch.from_numpy(mono.copy())
    if not wave.isfinite().all():
        place = segment.start_seconds + int((~wave.isfinite()).nonzero()[0]) / rate_hz
        raise AudioError(segment.recording, "samples", f"not a finite number at {place:g} s")
    resampled: Tensor = resample(wave, rate_hz, SAMPLE_RATE_HZ)
    return resampled[:limit_samples]


def _heard(frames: np.ndarray, channel: str, recording: str) -> np.ndarray:
    """Return the channel that is heard, or the mean of all: float32 [frames]."""
    if channel == "mean":
        mean: np.ndarray = frames.mean(axis=1)
        return mean
    number = 0 if channel == "first" else int(channel)
    if number >= frames.shape[1]:
        raise AudioError(recording, "format", f"has {frames.shape[1]} channels, of which none is number {number}")
    return frames[:, number]


def _decode(sound: SoundFile, file: Seekable, extent: Extent, segment: Segment, limit: int) -> np.ndarray:
    """Return at most `limit` frames of a segment at the recording's own rate, float32 [frames, channels]."""
    rate_hz = sound.samplerate
    start = round(segment.start_seconds * rate_hz)
    available = (sound.frames if extent.frames is None else extent.frames) - start
    asked = available if segment.duration_seconds is None else round(segment.duration_seconds * rate_hz)
    slack = round(SEGMENT_SLACK_SECONDS * rate_hz)
    if available <= 0 or asked > available + slack:
        end = "its end" if segment.duration_seconds is None else f"{(start + asked) / rate_hz:g} s"
        reason = f"lasts {(start + available) / rate_hz:g} s, asked for {segment.start_seconds:g} s to {end}"
        raise AudioError(segment.recording, "length", reason)

    count = least = min(asked, available, limit)
    if extent.frames is None:  # the end shows only when it comes
        least = 1 if segment.duration_seconds is None else count - slack
    _go_to(sound, start, extent)
    frames: np.ndarray = sound.read(count, dtype="float32", always_2d=True)
    if len(frames) < max(least, 1):
        if sound.format == "MP3":
            find_frames(file)  # raises where it finds the cause
        reason = f"gave {len(frames)} of {count} frames from {segment.start_seconds:g} s on"
        raise AudioError(segment.recording, "decode", reason)
    return frames


def _go_to(sound: SoundFile, start: int, extent: Extent) -> None:
    """Make `start` the next frame to be read, with the samples that it has in the fully decoded recording."""
    place = start - round(PREROLL_SECONDS.get(sound.subtype, 0) * sound.samplerate)
    place = max(0, place if extent.seekable is None else min(place, extent.seekable))
    if place:
        sound.seek(place)
    for skipped in range(place, start, _SKIPPED_AT_ONCE):
        sound.read(min(_SKIPPED_AT_ONCE, start - skipped), dtype="float32")
