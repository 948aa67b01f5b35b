"""Clips: 16 kHz mono waves read from one or more segments of recordings, or the reason why they cannot be."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from torchaudio.functional import resample

from encoders.audio import (
    CLIP_SAMPLES,
    CLIP_SECONDS,
    JOIN_SILENCE_SAMPLES,
    MIN_CLIP_SAMPLES,
    SAMPLE_RATE_HZ,
    AudioError,
    Segment,
)
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
    max_clip_seconds: float = CLIP_SECONDS,
    open_file: OpenFile = open_local,
    on_doubt: Callable[[AudioError], None] | None = None,
) -> Tensor:
    """Return what the encoders hear of `segments`: float32 [samples] at 16 kHz, 1 s to `max_clip_seconds`.

    Segments are joined with 0.1 s of silence, padded with zeros to 1 s and cut at `max_clip_seconds`; nothing after
    that is decoded.
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
    most, filled = round(max_clip_seconds * SAMPLE_RATE_HZ), 0
    parts: list[Tensor] = []
    for segment in segments:
        if parts:
            parts.append(torch.zeros(min(JOIN_SILENCE_SAMPLES, most - filled)))
            filled += len(parts[-1])
        if filled == most:
            break
        for part in _read_segment(segment, most - filled, channel, open_file, on_doubt):
            parts.append(part)
            filled += len(part)
    if filled < MIN_CLIP_SAMPLES:
        parts.append(torch.zeros(MIN_CLIP_SAMPLES - filled))
    return torch.cat(parts)


def _read_segment(
    segment: Segment,
    limit_samples: int,
    channel: str,
    open_file: OpenFile,
    on_doubt: Callable[[AudioError], None] | None,
) -> list[Tensor]:
    """Return at most the first `limit_samples` 16 kHz samples of a segment, float32 [samples], in parts."""
    with open_sound(segment.recording, open_file) as (sound, file, extent):
        rate_hz = sound.samplerate
        limit = _frames_for(limit_samples, rate_hz)
        taken = _Taken(segment, channel, rate_hz)
        waves = list(_resampled((taken.mono(block) for block in _decode(sound, file, extent, segment, limit)), rate_hz))
        if segment.duration_seconds is None and taken.frames < limit:
            check_end(sound.format, file, extent.frames, rate_hz)
            if extent.doubt and on_doubt is not None:
                on_doubt(AudioError(segment.recording, "length", extent.doubt))
    taken.check(on_doubt)
    beyond = sum(len(wave) for wave in waves) - limit_samples
    if beyond > 0:
        waves[-1] = waves[-1][: len(waves[-1]) - beyond].clone()  # a view would drag the rest along when it is sent
    return waves


def _frames_for(samples: int, rate_hz: int) -> int:
    """Return how many frames of a recording give so many 16 kHz samples; the filter reaches a few past the cut."""
    return math.ceil((samples + 16) * rate_hz / SAMPLE_RATE_HZ) + 16


class _Taken:
    """What has been decoded of a segment: how much, and whether it is sound."""

    def __init__(self, segment: Segment, channel: str, rate_hz: int) -> None:
        self._segment, self._channel, self._rate_hz = segment, channel, rate_hz
        self.frames = 0
        self._is_silent = True
        self._loudest_C: np.ndarray = np.zeros(1)
        self._not_finite: int | None = None

    def mono(self, frames: np.ndarray) -> np.ndarray:
        """Note a block [frames, channels], and return what is heard of it, [frames]."""
        mono = _heard(frames, self._channel, self._segment.recording)
        self._is_silent = self._is_silent and not mono.any()
        self._loudest_C = np.maximum(self._loudest_C, np.abs(frames).max(axis=0))
        if self._not_finite is None and not np.isfinite(mono).all():
            self._not_finite = self.frames + int(np.argmin(np.isfinite(mono)))
        self.frames += len(frames)
        return mono

    def check(self, on_doubt: Callable[[AudioError], None] | None) -> None:
        """Tell of a silent channel beside one that sounds; raise AudioError where samples are no numbers."""
        recording = self._segment.recording
        if on_doubt is not None and self._is_silent and self._loudest_C.max() > AUDIBLE:
            sounding = int(self._loudest_C.argmax())
            on_doubt(AudioError(recording, "samples", f"the heard channel is silent, channel {sounding} is not"))
        if self._not_finite is not None:
            place = self._segment.start_seconds + self._not_finite / self._rate_hz
            raise AudioError(recording, "samples", f"not a finite number at {place:g} s")


def _resampled(blocks: Iterable[np.ndarray], rate_hz: int) -> Iterator[Tensor]:
    """Yield the 16 kHz samples of mono blocks, each of whole seconds but the last: float32 [samples].

    Each is resampled with a second of its neighbours, much more than the filter reaches; one block alone as it is.
    """
    waiting = iter(blocks)
    before, block = np.zeros(0, np.float32), next(waiting)
    for after in chain(waiting, [np.zeros(0, np.float32)]):
        wave = torch.from_numpy(np.concatenate([before, block, after[:rate_hz]]))
        first = len(before) // rate_hz * SAMPLE_RATE_HZ
        resampled: Tensor = resample(wave, rate_hz, SAMPLE_RATE_HZ)
        if len(after):
            resampled = resampled[: first + len(block) // rate_hz * SAMPLE_RATE_HZ]
        yield resampled[first:].clone() if first or len(after) else resampled
        before, block = block[-rate_hz:], after


def _heard(frames: np.ndarray, channel: str, recording: str) -> np.ndarray:
    """Return the channel that is heard, or the mean of all: float32 [frames]."""
    if channel == "mean":
        mean: np.ndarray = frames.mean(axis=1)
        return mean
    number = 0 if channel == "first" else int(channel)
    if number >= frames.shape[1]:
        raise AudioError(recording, "format", f"has {frames.shape[1]} channels, of which none is number {number}")
    return frames[:, number]


def _decode(sound: SoundFile, file: Seekable, extent: Extent, segment: Segment, limit: int) -> Iterator[np.ndarray]:
    """Yield at most `limit` frames of a segment at the recording's own rate, float32 [frames, channels].

    What makes a clip of 30 s comes at once, more than that in blocks of 30 s.
    """
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
    size, given = count if count <= _frames_for(CLIP_SAMPLES, rate_hz) else CLIP_SECONDS * rate_hz, 0
    while given < count:
        frames: np.ndarray = sound.read(min(size, count - given), dtype="float32", always_2d=True)
        if not len(frames):
            break
        given += len(frames)
        yield frames
        if len(frames) < size:
            break
    if given < max(least, 1):
        if sound.format == "MP3":
            find_frames(file)  # raises where it finds the cause
        reason = f"gave {given} of {count} frames from {segment.start_seconds:g} s on"
        raise AudioError(segment.recording, "decode", reason)


def _go_to(sound: SoundFile, start: int, extent: Extent) -> None:
    """Make `start` the next frame to be read, with the samples that it has in the fully decoded recording."""
    place = start - round(PREROLL_SECONDS.get(sound.subtype, 0) * sound.samplerate)
    place = max(0, place if extent.seekable is None else min(place, extent.seekable))
    if place:
        sound.seek(place)
    for skipped in range(place, start, _SKIPPED_AT_ONCE):
        sound.read(min(_SKIPPED_AT_ONCE, start - skipped), dtype="float32")
