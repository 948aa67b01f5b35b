"""LibriSpeech (OpenSLR 12): `<split>/<speaker>/<chapter>/<utterance>.flac`, a `.trans.txt` a chapter, SPEAKERS.TXT.

Transcripts are upper case in the corpus, lower case here. Phones are ARPAbet without stress.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from omegaconf import MISSING

from encoders.audio import Segment
from pipelines import storage
from pipelines.errors import MissingError, UserError
from pipelines.interface.progress import Progress
from pipelines.manifest.corpora.phones import lexicon_phones, read_lexicon, textgrid_phones
from pipelines.manifest.corpora.recordings import with_recordings
from pipelines.manifest.corpora.text_files import read_lines, require_layout
from pipelines.manifest.corpus import CorpusExample, PrepareConfig, Skipped, require_folder
from pipelines.manifest.prepare import write_manifest
from pipelines.manifest.reports import PrepareReport

PACKAGINGS = {
    "{split}/{speaker}/{chapter}/{utterance}.flac": "its archives",
    "{split}/{speaker}/{chapter}/{utterance}.wav": "the same, converted to WAV",
}
TASKS = ("asr", "gender_recognition", "phone_recognition")
TEXTGRID = "{split}/{speaker}/{chapter}/{utterance}.TextGrid"
GENDERS = {"M": "male", "F": "female"}

Answer = Callable[[Mapping[str, str]], str | None]
"""What a task answers about an utterance of `read_transcripts`, None where it has no answer."""


@dataclass(frozen=True)
class LibriSpeechConfig(PrepareConfig):
    root: str = MISSING
    """[URI] The folder `LibriSpeech` that the archives unpack to, with SPEAKERS.TXT and the splits in it."""
    recording: str = ""
    """[template] A recording's name below the root, made of split, speaker, chapter and utterance; empty: the first
    packaging of docs/packagings.md that is there."""
    splits: list[str] = field(default_factory=list)
    """[names] Splits to read, such as [train-clean-100,test-other]; empty: all that are there."""
    tasks: list[str] = field(default_factory=lambda: ["asr"])
    """[names] Examples to make of every utterance: asr, gender_recognition, phone_recognition (needs alignments or
    lexicon)."""
    alignments: str = ""
    """[URI] Folder of Montreal Forced Aligner's TextGrids, laid out as the recordings are; may be the root itself."""
    lexicon: str = ""
    """[URI] A word and its phones a line, such as LibriSpeech's own lexicon; a word's first pronunciation counts."""
    corpus: str = "librispeech"
    """[name] Corpus name in the manifest; part of every clip's identity."""

    def __post_init__(self) -> None:
        """Refuse tasks that the corpus cannot give."""
        super().__post_init__()
        for task in self.tasks:
            if task not in TASKS:
                raise UserError(f"tasks: {task!r} cannot be made from LibriSpeech; choose from {', '.join(TASKS)}")
        if "phone_recognition" in self.tasks and bool(self.alignments) == bool(self.lexicon):
            raise UserError("tasks: phone_recognition needs either alignments=… or lexicon=…")


def prepare_librispeech(config: LibriSpeechConfig, progress: Progress | None = None) -> PrepareReport:
    """Write the manifest of the splits below `root`."""
    root = require_layout(config.root, ["SPEAKERS.TXT"], expected="the folder LibriSpeech, which holds the splits")
    return write_manifest(read_librispeech(config), corpus=config.corpus, root=root, config=config, progress=progress)


def read_librispeech(config: LibriSpeechConfig) -> Iterator[CorpusExample | Skipped]:
    """Yield the examples of every utterance, sorted by split, speaker, chapter and utterance.

    An utterance whose phones are not all known is skipped in phone recognition.

    Raises:
        UserError: If a split is not there, a line is malformed or (for gender) a speaker is not in SPEAKERS.TXT.
    """
    found = storage.list_folders(config.root)
    for split in config.splits or found:
        if split not in found:
            raise UserError(f"{config.root}: no split {split!r}; found {', '.join(found) or 'no folders'}")
    answers = {task: _answer(config, task) for task in config.tasks}
    for split in config.splits or found:
        said = read_transcripts(config.root, split)
        for _, utterance, recording in with_recordings(said, config.recording, PACKAGINGS, config.root):
            for task, answer in answers.items():
                answered = answer(utterance)
                if answered is None:
                    yield Skipped(recording, "phones are not known", utterance["text"])
                else:
                    yield CorpusExample((Segment(recording),), split, task, answered)


def _answer(config: LibriSpeechConfig, task: str) -> Answer:
    if task == "gender_recognition":
        genders = _read_genders(config.root)
        return lambda utterance: _gender(config.root, genders, utterance)
    if task == "phone_recognition" and config.lexicon:
        lexicon = read_lexicon(config.lexicon)
        return lambda utterance: lexicon_phones(utterance["text"], lexicon)
    if task == "phone_recognition":
        folder = require_folder(config.alignments, "alignments")
        if not set(storage.list_folders(folder)) & set(storage.list_folders(config.root)):
            raise MissingError(f"alignments={folder}: no folder of a split; expected <split>/…/<utterance>.TextGrid")
        return lambda utterance: textgrid_phones(storage.join(folder, TEXTGRID.format(**utterance)))
    return lambda utterance: utterance["text"]


def read_transcripts(root: str, split: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (place, utterance) of a split, sorted: its split, speaker, chapter and utterance, and text in lower case.

    Raises:
        UserError: Naming the line that is not an utterance of its chapter and a text.
    """
    for speaker in storage.list_folders(storage.join(root, split)):
        for chapter in storage.list_folders(storage.join(root, split, speaker)):
            folder = f"{split}/{speaker}/{chapter}"
            for name in storage.list_names(storage.join(root, folder), ".trans.txt"):
                for place, line in read_lines(storage.join(root, folder, name)):
                    utterance, _, text = line.partition(" ")
                    if not utterance.startswith(f"{speaker}-{chapter}-") or not text.strip():
                        raise UserError(f"{place}: {line!r} is not an utterance {speaker}-{chapter}-… and its text")
                    about = {"split": split, "speaker": speaker, "chapter": chapter, "utterance": utterance}
                    yield place, {**about, "text": text.strip().lower()}


def _gender(root: str, genders: Mapping[str, str], utterance: Mapping[str, str]) -> str:
    if utterance["speaker"] not in genders:
        place = "{split}/{speaker}/{chapter}/{utterance}".format(**utterance)
        raise UserError(f"{root}/SPEAKERS.TXT: does not name the speaker of {place}")
    return genders[utterance["speaker"]]


def _read_genders(root: str) -> dict[str, str]:
    """Return speaker -> male/female; lines read `ID | SEX | SUBSET | MINUTES | NAME`, `;` begins a comment."""
    genders: dict[str, str] = {}
    for place, line in read_lines(storage.join(root, "SPEAKERS.TXT")):
        if not line.startswith(";"):
            speaker, sex, *_ = [*map(str.strip, line.split("|")), ""]
            if sex not in GENDERS:
                raise UserError(f"{place}: {line!r} does not give a speaker's sex as M or F")
            genders[speaker] = GENDERS[sex]
    return genders
