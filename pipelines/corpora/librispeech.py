"""LibriSpeech (OpenSLR 12): `<split>/<speaker>/<chapter>/<utterance>.flac`, a `.trans.txt` a chapter, SPEAKERS.TXT."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from omegaconf import MISSING

from encoders.audio import Segment
from pipelines import storage
from pipelines.prepare import CorpusExample, PrepareConfig, PrepareReport, require_folder, write_manifest
from pipelines.progress import Progress

GENDERS = {"M": "male", "F": "female"}


@dataclass(frozen=True)
class LibriSpeechConfig(PrepareConfig):
    root: str = MISSING
    """[URI] The folder `LibriSpeech` that the archives unpack to, with the splits in it."""
    splits: list[str] = field(default_factory=list)
    """[names] Splits to read, such as [train-clean-100,test-other]; empty: all that are there."""
    tasks: list[str] = field(default_factory=lambda: ["asr"])
    """[names] Examples to make of every utterance: asr, gender_recognition (needs SPEAKERS.TXT)."""
    corpus: str = "librispeech"
    """[name] Corpus name in the manifest; part of every clip's identity."""

    def __post_init__(self) -> None:
        """Refuse tasks that the corpus cannot give."""
        for task in self.tasks:
            if task not in ("asr", "gender_recognition"):
                raise ValueError(
                    f"tasks: {task!r} cannot be made from LibriSpeech; choose from asr, gender_recognition"
                )


def prepare_librispeech(config: LibriSpeechConfig, progress: Progress | None = None) -> PrepareReport:
    """Write the manifest of the splits that lie below `root`."""
    root = require_folder(config.root, "root")
    return write_manifest(read_librispeech(config), corpus=config.corpus, root=root, config=config, progress=progress)


def read_librispeech(config: LibriSpeechConfig) -> Iterator[CorpusExample]:
    """Yield the examples of every utterance, sorted by split, speaker, chapter and utterance.

    Raises:
        ValueError: If a split is not there, or (for gender) a speaker is not in SPEAKERS.TXT.
    """
    found = storage.list_folders(config.root)
    for split in config.splits or found:
        if split not in found:
            raise ValueError(f"{config.root}: no split {split!r}; found {', '.join(found) or 'no folders'}")
    genders = _read_genders(config.root) if "gender_recognition" in config.tasks else {}
    for split in config.splits or found:
        for speaker in storage.list_folders(storage.join(config.root, split)):
            for recording, text in _utterances(config.root, f"{split}/{speaker}"):
                yield from _examples(config, split, recording, text, genders.get(speaker))


def _examples(
    config: LibriSpeechConfig, split: str, recording: str, text: str, gender: str | None
) -> Iterator[CorpusExample]:
    for task in config.tasks:
        if task == "gender_recognition" and gender is None:
            raise ValueError(f"{config.root}/SPEAKERS.TXT: does not name the speaker of {recording}")
        yield CorpusExample((Segment(recording),), split, task, text if task == "asr" else str(gender))


def _utterances(root: str, speaker: str) -> Iterator[tuple[str, str]]:
    """Yield (recording, text) of a speaker's chapters; transcripts are upper case in the corpus, lower case here."""
    for chapter in storage.list_folders(storage.join(root, speaker)):
        folder = f"{speaker}/{chapter}"
        for name in storage.list_names(storage.join(root, folder), ".trans.txt"):
            lines = storage.read_bytes(storage.join(root, folder, name)).decode("utf-8").splitlines()
            for line in filter(None, map(str.strip, lines)):
                utterance, _, text = line.partition(" ")
                yield f"{folder}/{utterance}.flac", text.strip().lower()


def _read_genders(root: str) -> dict[str, str]:
    """Return speaker -> male/female; lines read `ID | SEX | SUBSET | MINUTES | NAME`, `;` begins a comment."""
    lines = storage.read_bytes(storage.join(root, "SPEAKERS.TXT")).decode("utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines if line.strip() and not line.startswith(";")]
    return {row[0]: GENDERS[row[1]] for row in rows if len(row) > 1 and row[1] in GENDERS}
