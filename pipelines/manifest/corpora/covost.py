"""CoVoST 2 from English: translations (`covost_v2.en_de.tsv` …) of the clips of Common Voice 4 (2019-12-10, `en/`).

Common Voice's folder holds `clips/*.mp3` and `validated.tsv`; the splits are CoVoST's own. Texts are as written.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from omegaconf import MISSING

from encoders.audio import Segment
from pipelines import storage
from pipelines.errors import MissingError, UserError
from pipelines.interface.progress import Progress
from pipelines.manifest.corpora.recordings import with_recordings
from pipelines.manifest.corpora.text_files import read_rows, require_layout
from pipelines.manifest.corpus import CorpusExample, PrepareConfig, Skipped
from pipelines.manifest.prepare import write_manifest
from pipelines.manifest.reports import PrepareReport

PACKAGINGS = {
    "clips/{path}": "Common Voice's archive",
    "clips/{stem}.wav": "its clips converted to WAV",
    "clips/{stem}.flac": "its clips converted to FLAC",
}
LANGUAGES = {"en2zh": "zh-CN", "en2de": "de", "en2ja": "ja"}
TASKS = (*LANGUAGES, "asr")
TRANSLATIONS = "covost_v2.en_{}.tsv"
SPLITS = {"train": "train", "train_covost": "train", "dev": "dev", "test": "test"}
"""As the corpus's own script takes them: rows of any other split belong to none."""


@dataclass(frozen=True)
class CovostConfig(PrepareConfig):
    root: str = MISSING
    """[URI] Common Voice's folder `en`, with clips/ and validated.tsv in it."""
    recording: str = ""
    """[template] A clip's name below the root, made of the column path, and stem, which is path without its ending;
    empty: the first packaging of docs/packagings.md that is there."""
    translations: str = ""
    """[URI] Folder of the files covost_v2.en_….tsv; empty: the root."""
    tasks: list[str] = field(default_factory=lambda: ["en2zh"])
    """[names] Examples to make: en2zh, en2de, en2ja, and asr from Common Voice's own sentences."""
    corpus: str = "covost"
    """[name] Corpus name in the manifest; part of every clip's identity."""

    def __post_init__(self) -> None:
        """Refuse tasks that the corpus cannot give."""
        super().__post_init__()
        for task in self.tasks:
            if task not in TASKS:
                raise UserError(f"tasks: {task!r} cannot be made from CoVoST; choose from {', '.join(TASKS)}")


def prepare_covost(config: CovostConfig, progress: Progress | None = None) -> PrepareReport:
    """Write the manifest of the languages asked for."""
    entries = ["validated.tsv"] if config.recording else ["clips", "validated.tsv"]
    root = require_layout(config.root, entries, expected="the folder en of Common Voice 4")
    return write_manifest(read_covost(config), corpus=config.corpus, root=root, config=config, progress=progress)


def read_covost(config: CovostConfig) -> Iterator[CorpusExample | Skipped]:
    """Yield the examples task by task, in the order of their files; rows without a text are skipped.

    For `asr` the splits of all clips (320,492 names) are in memory.

    Raises:
        MissingError: If there are no translations into a language.
        UserError: Naming the row that is malformed.
    """
    for task in config.tasks:
        rows = _sentences(config) if task == "asr" else _translations(config, LANGUAGES[task])
        for _, row, recording in with_recordings(rows, config.recording, PACKAGINGS, config.root):
            if row["text"].strip():
                yield CorpusExample((Segment(recording),), row["split"], task, row["text"].strip())
            else:
                yield Skipped(recording, f"no text for {task}")


def _sentences(config: CovostConfig) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows of Common Voice that the corpus has, with its splits."""
    splits = {row["path"]: row["split"] for _, row in _translations(config, _any_language(config))}
    for place, row in read_rows(storage.join(config.root, "validated.tsv"), ["path", "sentence"], tabs=True):
        if row["path"] in splits:
            yield place, _clip(row["path"], splits[row["path"]], row["sentence"])


def _translations(config: CovostConfig, language: str) -> Iterator[tuple[str, dict[str, str]]]:
    folder = config.translations or config.root
    uri = storage.join(folder, TRANSLATIONS.format(language))
    if not storage.file_exists(uri):
        there = [task for task, other in LANGUAGES.items() if _is_there(folder, other)]
        raise MissingError(f"{uri}: no such file" + f"; tasks=[{','.join(there)}] can be made" * bool(there))
    for place, row in read_rows(uri, ["path", "translation", "split"], tabs=True):
        if row["split"] in SPLITS:
            yield place, _clip(row["path"], SPLITS[row["split"]], row["translation"])


def _clip(path: str, split: str, text: str) -> dict[str, str]:
    return {"path": path, "stem": path.rpartition(".")[0] or path, "split": split, "text": text}


def _is_there(folder: str, language: str) -> bool:
    return storage.file_exists(storage.join(folder, TRANSLATIONS.format(language)))


def _any_language(config: CovostConfig) -> str:
    """Return a language that is there; all have the same clips and splits."""
    folder = config.translations or config.root
    for name in storage.list_names(folder, ".tsv"):
        if found := re.fullmatch(r"covost_v2\.en_([\w-]+)\.tsv", name):
            return found[1]
    raise MissingError(f"translations={folder}: no covost_v2.en_….tsv there, which tells the splits")
