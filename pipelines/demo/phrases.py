"""Spoken two-word phrases by made-up speakers, laid out on disk as LibriSpeech."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
from numpy.random import Generator

from pipelines.demo.speech_synthesis import ACCENTS, SPEECH_RATE_HZ, SpeechSynthesiser, Voice, Wave, open_synthesiser

# In each slot no two words share their stressed vowel.
COLOURS = ("RED", "BLUE", "GREEN", "WHITE", "BLACK", "BROWN", "PINK", "PURPLE")
THINGS = ("BOAT", "HOUSE", "TREE", "FISH", "CAR", "MOON", "LAMP", "DESK")

SLOT_QUESTIONS = ("Which colour is said?", "Which thing is said?")

_FIRST_SPEAKER_ID = 101
_SPEAKERS_HEADER = (
    "; Speakers made by a synthesiser; the subset is the folder, the minutes are of audio.\n"
    ";ID  |SEX| SUBSET           |MINUTES| NAME\n"
)


@dataclass(frozen=True)
class Phrase:
    """One utterance: who says what, and which number it has in the speaker's only chapter."""

    subset: str
    voice: Voice
    number: int
    text: str

    @property
    def chapter(self) -> str:
        """`<speaker>-<chapter>`, as file names begin."""
        return f"{self.voice.name}-{10 * int(self.voice.name) + 1}"

    @property
    def utterance_id(self) -> str:
        return f"{self.chapter}-{self.number:04d}"

    @property
    def folder(self) -> Path:
        """Folder of the recording, relative to LibriSpeech's."""
        return Path(self.subset, *self.chapter.split("-"))

    @property
    def path(self) -> Path:
        """The recording, relative to LibriSpeech's folder."""
        return self.folder / f"{self.utterance_id}.flac"


def plan_phrases(subset: str, num_phrases: int, speakers: Sequence[int], *, seed: int) -> list[Phrase]:
    """Return what `speakers` say, in turn: eight phrases hold every word once, 64 every pair once, in random order."""
    rng = np.random.default_rng([seed, *subset.encode()])
    voices = [_draw_voice(speaker, seed=seed) for speaker in speakers]
    size = len(COLOURS)
    pairs: list[tuple[int, int]] = []
    while len(pairs) < num_phrases:
        pairs += [(colour, (colour + row) % size) for row in rng.permutation(size) for colour in rng.permutation(size)]
    phrases = []
    for index, (colour, thing) in enumerate(pairs[:num_phrases]):
        number, speaker = divmod(index, len(voices))
        phrases.append(Phrase(subset, voices[speaker], number, f"{COLOURS[colour]} {THINGS[thing]}"))
    return phrases


def write_librispeech(
    librispeech_dir: Path, phrases: Sequence[Phrase], *, seed: int, on_recording: Callable[[], None]
) -> None:
    """Write the recordings, a transcript per chapter and SPEAKERS.TXT, calling `on_recording` after each recording."""
    voices = {phrase.voice.name: phrase.voice for phrase in phrases}
    speaker_seconds: dict[tuple[str, str], float] = defaultdict(float)
    transcripts: dict[Path, str] = defaultdict(str)
    with open_synthesiser(list(voices.values())) as synthesiser:
        for phrase in phrases:
            (librispeech_dir / phrase.folder).mkdir(parents=True, exist_ok=True)
            samples = _record(phrase, synthesiser, np.random.default_rng([seed, *phrase.utterance_id.encode()]))
            sf.write(librispeech_dir / phrase.path, samples, SPEECH_RATE_HZ, subtype="PCM_16")
            speaker_seconds[phrase.voice.name, phrase.subset] += len(samples) / SPEECH_RATE_HZ
            transcripts[phrase.folder / f"{phrase.chapter}.trans.txt"] += f"{phrase.utterance_id} {phrase.text}\n"
            on_recording()
    for path, text in transcripts.items():
        (librispeech_dir / path).write_text(text, encoding="utf-8")
    rows = (
        f"{name:<5}| {voices[name].gender} | {subset:<17}| {seconds / 60:<6.2f}| {voices[name].accent} {name}\n"
        for (name, subset), seconds in speaker_seconds.items()
    )
    (librispeech_dir / "SPEAKERS.TXT").write_text(_SPEAKERS_HEADER + "".join(rows), encoding="utf-8")


def phrase_questions(phrases: Sequence[Phrase]) -> list[dict[str, str]]:
    """Ask of each phrase for one of its two words, in turn; entries of a SALMONN annotation file."""
    return [
        {"path": phrase.path.as_posix(), "text": word.lower(), "task": "sqa", "Q": SLOT_QUESTIONS[number % 2]}
        for number, phrase in enumerate(phrases)
        for word in [phrase.text.split()[number % 2]]
    ]


def _draw_voice(speaker: int, *, seed: int) -> Voice:
    rng = np.random.default_rng([seed, *b"voice", speaker])
    is_woman = speaker % 2 == 1
    low_hz = rng.uniform(135, 185) if is_woman else rng.uniform(70, 105)
    return Voice(
        name=str(_FIRST_SPEAKER_ID + speaker),
        accent=ACCENTS[speaker % len(ACCENTS)],
        gender="F" if is_woman else "M",
        formant_scale=rng.uniform(1.08, 1.22) if is_woman else rng.uniform(0.94, 1.05),
        low_hz=low_hz,
        high_hz=low_hz * rng.uniform(1.4, 1.7),
        words_per_minute=round(rng.uniform(105, 132)),
    )


def _record(phrase: Phrase, synthesiser: SpeechSynthesiser, rng: Generator) -> Wave:
    """Return the phrase as this speaker happens to say it this time, in a room that is not quite silent."""
    speech = synthesiser.speak(
        phrase.text.lower(), phrase.voice, speed=rng.uniform(0.92, 1.08), pitch=int(rng.integers(40, 61))
    )
    silences = (rng.uniform(0.02, 0.25), rng.uniform(0.05, 0.15))  # seconds before and after
    samples = np.pad(speech, [round(seconds * SPEECH_RATE_HZ) for seconds in silences])
    samples *= 10 ** (-rng.uniform(2, 14) / 20) / np.abs(samples).max()
    noise = rng.standard_normal(samples.size) * np.std(samples) * 10 ** (-rng.uniform(25, 40) / 20)
    return samples + noise
