"""All streams of a clip: Whisper for speech and, unless left out, BEATs for everything else."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encoders.audio import CLIP_SECONDS
from encoders.beats.encoder import BeatsEncoder
from encoders.errors import EncoderError
from encoders.features import OWN_ENCODER, SAMPLES_PER_FRAME, SPEECH_FRAMES, STEP_SAMPLES, Kernel, piece_borders
from encoders.own_encoder import AudioEncoder, load_own_encoder
from encoders.tiny import tiny_beats, tiny_whisper
from encoders.whisper.encoder import WhisperEncoder

MOST_FRAMES_ON_CPU = 512
"""In a batch, padding counted: with more, the values between two layers outgrow the processor's cache."""
MOST_PADDING = 0.125
"""Of a clip in a batch, in parts of the longest one."""


class ClipEncoder:
    """Encodes clips of any lengths in batches that suit the device. Threads may share it."""

    def __init__(self, speech: WhisperEncoder, audio: AudioEncoder | None) -> None:
        self.speech = speech
        self.audio = audio
        self.device = speech.device

    @property
    def widths(self) -> dict[str, int]:
        """Channels of each stream."""
        return {"speech": self.speech.width} | ({"audio": self.audio.width} if self.audio else {})

    @property
    def digests(self) -> dict[str, str]:
        """Weight digest of each stream's encoder."""
        return {"speech": self.speech.digest} | ({"audio": self.audio.digest} if self.audio else {})

    @property
    def attention(self) -> Kernel:
        """What computes the attention of the audio stream; the speech stream's is always SDPA."""
        return self.audio.attention if isinstance(self.audio, BeatsEncoder) else "sdpa"

    def encode(
        self,
        waves: Sequence[Tensor],
        *,
        batch_size: int = 8,
        seconds: dict[str, float] | None = None,
        on_clips: Callable[[float], None] | None = None,
    ) -> list[dict[str, Tensor]]:
        """Return {"speech": [1500, C], "audio": [P, C]} of each 16 kHz wave, in the order given, on the device.

        A clip over 30 s is encoded in pieces (`piece_borders`), whose frames are joined: its speech frames are those
        that overlap its sound, [samples / 320, C] rounded up. Which pieces share a batch follows from the clips'
        lengths alone, so the same clips always give the same bits.

        Args:
            waves: float32 [samples] each, 25 ms or longer.
            batch_size: Most pieces in a batch; on the CPU, where small batches are the fast ones, seldom reached.
            seconds: The time of "mel", "whisper", "fbank" and "beats" is added to what stands here.
            on_clips: Is told of each batch's clips, one stream of two as half a clip; a GPU may still be at it.
        """
        watch = _Stopwatch(self.device)
        pieces = [piece for clip, wave in enumerate(waves) for piece in _pieces(clip, wave)]
        clips: list[dict[str, Tensor]] = [{} for _ in waves]
        encoded: dict[int, Tensor] = {}

        def count(batch: Sequence[int]) -> None:
            if on_clips:
                on_clips(sum(pieces[piece].share for piece in batch) / len(self.widths))

        for batch in self._batches([SPEECH_FRAMES] * len(pieces), batch_size):
            with watch("mel"):
                mel_BMT = self.speech.log_mel([pieces[piece].wave for piece in batch])
            with watch("whisper"):
                frames_BTC = self.speech.encode_mel(mel_BMT)
            for piece, frames_TC in zip(batch, frames_BTC, strict=True):
                encoded[piece] = pieces[piece].own_speech(frames_TC)
            count(batch)
        _join(clips, "speech", pieces, encoded)
        if self.audio is not None and pieces:
            with watch("fbank"):
                prepared = self.audio.prepare([piece.wave_and_next for piece in pieces])
            for batch in self._batches([self.audio.count_frames(each) for each in prepared], batch_size):
                with watch("beats"):
                    frames = self.audio.encode_prepared([prepared[piece] for piece in batch])
                for piece, frames_PC in zip(batch, frames, strict=True):
                    encoded[piece] = pieces[piece].own_audio(frames_PC)
                count(batch)
            _join(clips, "audio", pieces, encoded)
        if seconds is not None:
            watch.add_to(seconds)
        return clips

    def _batches(self, num_frames: Sequence[int], batch_size: int) -> Iterator[list[int]]:
        """Yield batches of clips of these lengths, the longest first, equal ones in the order given."""
        most_frames = MOST_FRAMES_ON_CPU if self.device.type == "cpu" else batch_size * SPEECH_FRAMES
        batch: list[int] = []
        for clip in sorted(range(len(num_frames)), key=lambda clip: -num_frames[clip]):
            if batch:
                longest = num_frames[batch[0]]
                is_full = len(batch) == batch_size or (len(batch) + 1) * longest > most_frames
                if is_full or num_frames[clip] < (1 - MOST_PADDING) * longest:
                    yield batch
                    batch = []
            batch.append(clip)
        if batch:
            yield batch


@dataclass(frozen=True)
class _Piece:
    """What is encoded at once of a clip: all of one of 30 s or less, otherwise a part."""

    clip: int
    share: float
    """[1] One by the clip's pieces."""
    wave: Tensor
    wave_and_next: Tensor
    """With the step after it, where the clip goes on: BEATs' windows reach into it, and other encoders give frames of
    whole windows alone, so that without it sound before a border would be in no frame."""

    def own_speech(self, frames_TC: Tensor) -> Tensor:
        """Return the frames that overlap a part's sound, without those of its padding; of a whole clip, all.

        They are a copy: a view would keep all 1,500 in memory.
        """
        return frames_TC if self.share == 1 else frames_TC[: -(-len(self.wave) // SAMPLES_PER_FRAME)].clone()

    def own_audio(self, frames_PC: Tensor) -> Tensor:
        """Return the frames up to the next piece.

        Raises:
            EncoderError: If the encoder has given fewer.
        """
        if self.wave_and_next is self.wave:
            return frames_PC
        count = len(self.wave) // SAMPLES_PER_FRAME
        if len(frames_PC) < count:
            raise EncoderError(
                f"the audio encoder gave {len(frames_PC)} frames of {len(self.wave_and_next)} samples; a piece of a "
                f"clip over {CLIP_SECONDS} s needs {count}"
            )
        return frames_PC[:count]


def _pieces(clip: int, wave: Tensor) -> Iterator[_Piece]:
    borders = [*piece_borders(len(wave)), len(wave)]
    share = 1 / (len(borders) - 1)
    for start, end in pairwise(borders):
        if (start, end) == (0, len(wave)):
            yield _Piece(clip, share, wave, wave)
        else:
            own = wave[start:end]
            yield _Piece(clip, share, own, own if end == len(wave) else wave[start : end + STEP_SAMPLES])


def _join(
    clips: Sequence[dict[str, Tensor]], stream: str, pieces: Sequence[_Piece], encoded: dict[int, Tensor]
) -> None:
    """Give each clip the frames of its pieces, which follow each other, and take them out of `encoded`."""
    for clip, places in groupby(range(len(pieces)), key=lambda place: pieces[place].clip):
        parts = [encoded.pop(place) for place in places]
        clips[clip][stream] = parts[0] if len(parts) == 1 else torch.cat(parts)


class _Stopwatch:
    """Times parts of a device's work without waiting for it in between."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._spans: list[tuple[str, Any, Any]] = []

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        begin = self._now()
        yield
        self._spans.append((part, begin, self._now()))

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def add_to(self, seconds: dict[str, float]) -> None:
        """Add each part's seconds, waiting for the last one's end."""
        for part, begin, end in self._spans:
            if self._on_gpu:
                end.synchronize()
            elapsed = begin.elapsed_time(end) / 1000 if self._on_gpu else end - begin
            seconds[part] = seconds.get(part, 0.0) + elapsed


def load_clip_encoder(
    *,
    whisper: str,
    beats: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: Kernel = "sdpa",
) -> ClipEncoder:
    """Load both encoders onto one device.

    `whisper` is a Hugging Face Whisper folder or "tiny"; `beats` is a released checkpoint, "tiny", "none", or another
    encoder, `module:function` (`encoders.own_encoder`).

    Raises:
        EncoderError: If a path does not exist or does not hold what is expected there.
    """
    audio = None if beats == "none" else _load_beats(beats, device, dtype, attention)
    return ClipEncoder(_load_whisper(whisper, device, dtype), audio)


def _load_whisper(path: str, device: str | torch.device, dtype: torch.dtype) -> WhisperEncoder:
    if path == "tiny":
        return tiny_whisper(device=device, dtype=dtype)
    if not Path(path).is_dir():
        raise EncoderError(f'whisper={path}: no such folder; expected a Whisper folder with config.json, or "tiny"')
    return WhisperEncoder.from_pretrained(path, device=device, dtype=dtype)


def _load_beats(path: str, device: str | torch.device, dtype: torch.dtype, attention: Kernel) -> AudioEncoder:
    if OWN_ENCODER.fullmatch(path):
        return load_own_encoder(path, device=device, dtype=dtype)
    if path == "tiny":
        return tiny_beats(device=device, dtype=dtype, attention=attention)
    if not Path(path).is_file():
        raise EncoderError(
            f'beats={path}: no such file; expected a BEATs checkpoint (.pt), "tiny", "none" or module:function'
        )
    return BeatsEncoder.from_checkpoint(path, device=device, dtype=dtype, attention=attention)
