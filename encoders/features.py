"""What features are called and how they are described; without PyTorch, for those who plan, store and list them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from encoders.audio import CLIP_SAMPLES, CLIP_SECONDS, SAMPLE_RATE_HZ

FRAME_RATE_HZ = 50
"""Of both streams: a frame is 20 ms."""
SPEECH_FRAMES = CLIP_SECONDS * FRAME_RATE_HZ
"""Whisper's frames of any clip: it is padded to the full length."""
BANK_SAMPLES, BANK_HOP_SAMPLES = 400, 160
"""BEATs' filter banks: windows of 25 ms, one every 10 ms."""
NUM_MEL_BANDS = 128
PATCH_FRAMES = 16
PATCHES_PER_STEP = NUM_MEL_BANDS // PATCH_FRAMES
"""BEATs' patches are 16 filter-bank frames by 16 mel bands; each of the 8 of one time step gives a frame."""

STEP_SAMPLES = PATCH_FRAMES * BANK_HOP_SAMPLES
"""[samples] One time step of BEATs: 160 ms, in which 8 frames of either stream begin."""
MOST_PIECE_STEPS = CLIP_SECONDS * SAMPLE_RATE_HZ // STEP_SAMPLES - 1
"""Of a piece of a longer clip: with the step behind it, which the audio encoder hears too, it lasts 30 s at most."""

OWN_ENCODER = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
"""How an encoder from outside this project is named: module:function (`encoders.own_encoder`)."""
SpeechFrames = Literal["all", "heard"]
"""Which of Whisper's frames a cache stores: 1,500 of a clip at least, or those that overlap its sound."""
Hear = Literal["all", "clip"]
"""What a model hears of a clip: its 30 s, silence behind the sound too, or the sound alone."""
Codec = Literal["float16", "int8"]
"""How frames are stored: as float16, or as int8 with a scale per channel and clip."""
Kernel = Literal["sdpa", "flex"]
"""What computes BEATs' attention: "sdpa" on any device; "flex", one fused kernel compiled on first use, on CUDA."""


def is_file(encoder: str) -> bool:
    """Say whether an encoder is named by where it lies."""
    return encoder not in ("", "tiny", "none") and not OWN_ENCODER.fullmatch(encoder)


@dataclass(frozen=True)
class StoredType:
    """What a codec makes of a stream's frames."""

    dtype: str
    """Of the frames, by the name that NumPy and PyTorch share."""
    value_nbytes: int
    parts: tuple[str, ...]
    """The arrays of a stream: "" are the frames, "scale" is float32 per channel."""


STORED_TYPES: Mapping[Codec, StoredType] = {
    "float16": StoredType("float16", 2, ("",)),
    "int8": StoredType("int8", 1, ("", "scale")),
}
SCALE_NBYTES = 4


@dataclass(frozen=True)
class Fidelity:
    """How near a clip's stored frames are to those computed."""

    snr_db: float
    """[dB] Energy of the frames over that of the error, within ±150."""
    cosine: float
    """[1] Of each frame with itself as computed, the mean over the frames."""
    worst_cosine: float
    """[1] The same, of the worst frame."""


SAMPLES_PER_FRAME = SAMPLE_RATE_HZ // FRAME_RATE_HZ


def piece_borders(samples: int) -> list[int]:
    """Return where the pieces begin in which a clip of so many samples is encoded; the last one ends with the clip.

    A clip of 30 s or less is one piece. A longer one is the fewest pieces of 29.76 s at most, equal but for one time
    step of BEATs; between two pieces a frame of either stream begins, so their frames join without a seam in time.
    """
    steps = -(-samples // STEP_SAMPLES)
    pieces = -(-steps // MOST_PIECE_STEPS) if samples > CLIP_SAMPLES else 1
    return [piece * steps // pieces * STEP_SAMPLES for piece in range(pieces)]


def heard_frames(
    seconds_N: Sequence[float] | np.ndarray[Any, np.dtype[np.float64]],
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the speech frames of clips of these lengths that overlap their sound, int64 [N]; the rest is silence.

    BEATs never gives more: `audio_frames` of the same lengths are as many or a few less.
    """
    samples_N = np.rint(np.asarray(seconds_N) * SAMPLE_RATE_HZ).astype(np.int64)
    frames_N: np.ndarray[Any, np.dtype[np.int64]] = np.maximum(-(-samples_N // SAMPLES_PER_FRAME), 1)
    return frames_N


def speech_frames(
    seconds_N: Sequence[float] | np.ndarray[Any, np.dtype[np.float64]],
    stored: SpeechFrames,
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the speech frames that a cache stores of clips of these lengths, int64 [N].

    Of a clip over 30 s none is of silence alone, whatever is stored.
    """
    frames_N = heard_frames(seconds_N)
    return frames_N if stored == "heard" else np.maximum(frames_N, SPEECH_FRAMES)


@dataclass(frozen=True)
class Heard:
    """How much of each clip a model hears."""

    frames: int
    """At most, of each stream, from the clip's start."""
    hear: Hear = "all"

    def frames_of(self, seconds_N: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the frames that are heard of clips of these lengths, int64 [N]."""
        own_N = speech_frames(seconds_N, "heard" if self.hear == "clip" else "all")
        frames_N: np.ndarray[Any, np.dtype[np.int64]] = np.minimum(own_N, self.frames)
        return frames_N


def audio_frames(seconds_N: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the BEATs frames of clips of these lengths, int64 [N]; a patch that is partly padding is left out."""
    samples_N = (np.maximum(seconds_N, 1) * SAMPLE_RATE_HZ).astype(np.int64)
    bank_frames_N = 1 + (samples_N - BANK_SAMPLES) // BANK_HOP_SAMPLES
    frames_N: np.ndarray[Any, np.dtype[np.int64]] = PATCHES_PER_STEP * (bank_frames_N // PATCH_FRAMES)
    return frames_N
