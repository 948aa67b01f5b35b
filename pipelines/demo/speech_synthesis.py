"""Spoken words without a model or a network: espeak-ng from a wheel, with voices made of a few numbers."""

import ctypes
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import UserError

Wave = NDArray[np.float64]
Gender = Literal["F", "M"]

SPEECH_RATE_HZ = 16_000
# Without Scotland: its rolled r begins wherever the previous utterance left espeak's noise table.
ACCENTS = ("en-us", "en", "en-029", "en-gb-x-rp", "en-us-nyc", "en-gb-x-gbclan", "en-gb-x-gbcwmd")

# Names and values of espeak-ng's speak_lib.h.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_PARAMETER_WORDS_PER_MINUTE, _PARAMETER_PITCH = 1, 3
_POSITION_CHARACTER, _CHARACTERS_UTF8 = 1, 1
_DATA_NAMES = ("phontab", "phonindex", "phondata", "intonations", "en_dict", "lang")
_SYNTH_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Voice:
    """One speaker: an accent, and a throat given by the scale of its formants and the range of its pitch."""

    name: str
    """Up to a dozen letters and digits; unique among the voices of one synthesiser."""
    accent: str
    """One of ACCENTS."""
    gender: Gender
    formant_scale: float
    """[ratio] All formant frequencies times this; 1.0 is espeak's own man, 1.15 a woman."""
    low_hz: float
    """[hertz] Bottom of the intonation range."""
    high_hz: float
    """[hertz] Top of the intonation range."""
    words_per_minute: int
    """[count] Usual speed, from 80 to 450."""

    @property
    def variant(self) -> str:
        """Name of the voice's file; espeak takes a bare number for one of its own voices."""
        return f"voice{self.name}"

    @property
    def definition(self) -> str:
        """The voice in espeak's format for variants.

        Flutter, roughness, echo and breath stay off: they carry state from one utterance to the next, and an
        utterance is to depend on nothing but its own arguments.
        """
        formants = "".join(f"formant {number} {round(100 * self.formant_scale)} 90 120\n" for number in range(6))
        return (
            f"language variant\nname {self.variant}\ngender {'female' if self.gender == 'F' else 'male'}\n"
            f"pitch {round(self.low_hz)} {round(self.high_hz)}\nflutter 0\nroughness 0\n{formants}"
        )


class SpeechSynthesiser:
    """espeak-ng speaking with given voices; made by `open_synthesiser`."""

    def __init__(self, library: Any, rate_hz: int, voices: Sequence[Voice]) -> None:
        self._library = library
        self._voices = frozenset(voices)
        self._rate_hz = rate_hz
        self._pieces: list[bytes] = []
        self._callback = _SYNTH_CALLBACK(self._collect)  # espeak keeps only the pointer: it has to outlive the calls
        library.espeak_SetSynthCallback(self._callback)

    def speak(self, text: str, voice: Voice, *, speed: float = 1.0, pitch: int = 50) -> Wave:
        """Return the spoken text, float64 [samples] in [-1, 1] at 16 kHz, without silence before and after.

        The samples depend on the arguments alone, not on what was said before.

        Args:
            text: English words.
            voice: One of the voices that the synthesiser was opened with.
            speed: Factor on the voice's usual speed.
            pitch: From 0 to 99; at 50 the voice keeps to its own range.

        Raises:
            UserError: If the voice is none of those, its accent is unknown, or the text makes no sound.
        """
        if voice not in self._voices:  # espeak would answer with its own voice and without a word
            raise ValueError(f"voice {voice.name!r}: the synthesiser was not opened with it")
        if self._library.espeak_SetVoiceByName(f"{voice.accent}+{voice.variant}".encode()) != 0:
            raise UserError(f"voice {voice.name!r}: espeak-ng has no accent {voice.accent!r} (try one of {ACCENTS})")
        self._library.espeak_SetParameter(_PARAMETER_WORDS_PER_MINUTE, round(speed * voice.words_per_minute), 0)
        self._library.espeak_SetParameter(_PARAMETER_PITCH, pitch, 0)
        self._pieces.clear()
        encoded = text.encode()
        self._library.espeak_Synth(
            encoded, ctypes.c_size_t(len(encoded) + 1), 0, _POSITION_CHARACTER, 0, _CHARACTERS_UTF8, None, None
        )
        samples = trim_silence(np.frombuffer(b"".join(self._pieces), np.int16) / 32768)
        if not samples.size:
            raise UserError(f"espeak-ng made no sound of {text!r}")
        return resample(samples, self._rate_hz, SPEECH_RATE_HZ)

    def _collect(self, samples: Any, num_samples: int, _events: Any) -> int:
        if num_samples > 0:
            self._pieces.append(ctypes.string_at(samples, 2 * num_samples))
        return 0


@contextmanager
def open_synthesiser(voices: Sequence[Voice]) -> Iterator[SpeechSynthesiser]:
    """Yield espeak-ng set up to speak with `voices`. Its state is the process's: one at a time, in one thread.

    Raises:
        UserError: If the package `espeakng-loader` is missing or its library does not load.
    """
    library, data_dir = _load_espeak()
    with tempfile.TemporaryDirectory(prefix="espeak-") as home:
        # Voices are files in espeak's data folder; this one is the installed folder but for its voices.
        linked_dir = Path(home, "espeak-ng-data")
        variants_dir = linked_dir / "voices" / "!v"
        variants_dir.mkdir(parents=True)
        for name in _DATA_NAMES:
            (linked_dir / name).symlink_to(data_dir / name)
        for voice in voices:
            (variants_dir / voice.variant).write_text(voice.definition, encoding="utf-8")
        rate_hz = library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, home.encode(), 0)
        if rate_hz <= 0:
            raise UserError(f"espeak-ng did not start with the data of espeakng-loader at {data_dir}")
        try:
            yield SpeechSynthesiser(library, rate_hz, voices)
        finally:
            library.espeak_Terminate()


def trim_silence(samples: Wave, *, threshold: float = 0.01) -> Wave:
    """Return `samples` from the first to the last that exceeds `threshold` times the loudest; empty if all are zero."""
    loud = np.flatnonzero(np.abs(samples) > threshold * np.abs(samples).max(initial=0.0))
    return samples[loud[0] : loud[-1] + 1] if loud.size else samples[:0]


def resample(samples: Wave, from_hz: int, to_hz: int) -> Wave:
    """Return `samples` [samples] at another rate, band-limited by cutting the spectrum.

    Both ends are taken to be silent: what rings over one end comes back at the other.
    """
    step = from_hz // np.gcd(from_hz, to_hz)
    padded = np.pad(samples, (0, -len(samples) % step))
    num_samples = len(padded) * to_hz // from_hz
    spectrum = np.fft.rfft(padded)
    kept = min(len(spectrum), num_samples // 2 + 1)
    return np.fft.irfft(spectrum[:kept], num_samples) * (num_samples / len(padded))


def _load_espeak() -> tuple[ctypes.CDLL, Path]:
    try:
        import espeakng_loader

        return ctypes.CDLL(espeakng_loader.get_library_path()), Path(espeakng_loader.get_data_path())
    except (ImportError, OSError) as error:
        raise UserError(
            f"speech synthesis needs the package espeakng-loader (pip install espeakng-loader): {error}"
        ) from error
