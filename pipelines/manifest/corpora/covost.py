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
from pipelines.manifest.corpora.text_files import read_rows, require_layout
from pipelines.manifest.corpus import CorpusExample, PrepareConfig, Skipped
from pipelines.manifest.prepare import PrepareReport, write_manifest

LANGUAGES = {"en2zh": "zh-CN", "en2de": "de", "en2ja": "ja"}
TASKS = (*LANGUAGES, "asr")
SPLITS = {"train": "train", "train_covost": "train", "dev": "dev", "test": "test"}
"""As the corpus's own script takes them: rows of any other split belong to none."""


@dataclass(frozen=True)
class CovostConfig(PrepareConfig):
    root: str = MISSING
    """[URI] Common Voice's folder `en`, with clips/ and validated.tsv in it."""
    translations: str = ""
    """[URI] Folder of the files covost_v2.en_….tsv; empty: the root."""
    tasks: list[str] = field(default_factory=lambda: ["en2zh"])
    """[names] Examples to make: en2zh, en2de, en2ja, and asr from Common Voice's own sentences."""
    corpus: str = "covost"
    """[name] Corpus name in the manifest; part of every clip's identity."""

    def __post_init__(self) -> None:
        """Refuse tasks that the corpus cannot give."""
        for task in self.tasks:
            if task not in TASKS:
                raise UserError(f"tasks: {task!r} cannot be made from CoVoST; choose from {', '.join(TASKS)}")


def prepare_covost(config: CovostConfig, progress: Progress | None = None) -> PrepareReport:
    """Write the manifest of the languages asked for."""
    root = require_layout(config.root, ["clips", "validated.tsv"], expected="the folder en of Common Voice 4")
    return write_manifest(read_covost(config), corpus=config.corpus, root=root, config=config, progress=progress)


def read_covost(config: CovostConfig) -> Iterator[CorpusExample | Skipped]:
    """Yield the examples task by task, in the order of their files; rows without a text are skipped.

    For `asr` the splits of all clips (320,492 names) are in memory.

    Raises:
        MissingError: If there are no translations into a language.
        UserError: Naming the row that is malformed.
    """
    for task in config.tasks:
        if task == "asr":
            splits = {path: split for path, split, _ in _translations(config, _any_language(config))}
            for _, row in read_rows(storage.join(config.root, "validated.tsv"), ["path", "sentence"], tabs=True):
                if row["path"] in splits:
                    yield _example(row["path"], splits[row["path"]], task, row["sentence"])
        else:
            for path, split, translation in _translations(config, LANGUAGES[task]):
                yield _example(path, split, task, translation)


def _example(path: str, split: str, task: str, answer: str) -> CorpusExample | Skipped:
    recording = f"clips/{path}"
    if not answer.strip():
        return Skipped(recording, f"no text for {task}")
    return CorpusExample((Segment(recording),), split, task, answer.strip())


def _translations(config: CovostConfig, language: str) -> Iterator[tuple[str, str, str]]:
    """Yield (path, split, translation)."""
    uri = storage.join(config.translations or config.root, f"covost_v2.en_{language}.tsv")
    for _, row in read_rows(uri, ["path", "translation", "split"], tabs=True):
        if row["split"] in SPLITS:
            yield row["path"], SPLITS[row["split"]], row["translation"]


def _any_language(config: CovostConfig) -> str:
    """Return a language that is there; all have the same clips and splits."""
    folder = config.translations or config.root
    for name in storage.list_names(folder, ".tsv"):
        if found := re.fullmatch(r"covost_v2\.en_([\w-]+)\.tsv", name):
            return found[1]
    raise MissingError(f"translations={folder}: no covost_v2.en_….tsv there, which tells the splits")
