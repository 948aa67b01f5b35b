"""Clotho (2.1): recordings of `development`, `validation`, `evaluation` and `clotho_captions_<split>.csv` of captions.

A clip has five captions. The splits are `train`, `dev` and `test` here.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from omegaconf import MISSING

from encoders.audio import Segment
from pipelines import storage
from pipelines.errors import UserError
from pipelines.interface.progress import Progress
from pipelines.manifest.corpora.recordings import recording_folders, require_parts, with_recordings
from pipelines.manifest.corpora.text_files import read_rows
from pipelines.manifest.corpus import CorpusExample, PrepareConfig
from pipelines.manifest.prepare import write_manifest
from pipelines.manifest.reports import PrepareReport

SPLITS = {"development": "train", "validation": "dev", "evaluation": "test"}
CAPTIONS = [f"caption_{number}" for number in range(1, 6)]
CAPTION_FOLDERS = ("", "clotho_csv_files")
"""Where the captions' files are: at the root, or where aac-datasets puts them."""
PACKAGINGS = {
    "{split}/{file_name}": "its archives, unpacked in one place",
    "clotho_audio_{split}/{split}/{file_name}": "its archives, each unpacked into a folder of its own name",
    "clotho_audio_files/{split}/{file_name}": "aac-datasets",
}


@dataclass(frozen=True)
class ClothoConfig(PrepareConfig):
    root: str = MISSING
    """[URI] The folder that holds the captions' files and the recordings."""
    recording: str = ""
    """[template] A recording's name below the root, made of split and the column file_name; empty: the first packaging
    of docs/packagings.md that is there."""
    splits: list[str] = field(default_factory=lambda: list(SPLITS))
    """[names] Splits to read: development, validation, evaluation."""
    corpus: str = "clotho"
    """[name] Corpus name in the manifest; part of every clip's identity."""

    def __post_init__(self) -> None:
        """Refuse splits that there are not."""
        super().__post_init__()
        for split in self.splits:
            if split not in SPLITS:
                raise UserError(f"splits: {split!r} is not in Clotho; choose from {', '.join(SPLITS)}")


def prepare_clotho(config: ClothoConfig, progress: Progress | None = None) -> PrepareReport:
    """Write the manifest of the splits asked for."""
    parts = {
        split: [_captions(split), recording_folders(config.recording, PACKAGINGS, split=split)] for split in SPLITS
    }
    root = require_parts(
        config.root, "splits", config.splits, parts, expected="captions and recordings of all splits=[…]"
    )
    return write_manifest(read_clotho(config), corpus=config.corpus, root=root, config=config, progress=progress)


def read_clotho(config: ClothoConfig) -> Iterator[CorpusExample]:
    """Yield five captions a clip, in the files' order.

    Raises:
        UserError: Naming the file and line that is malformed, or the column that is missing.
    """
    for split in config.splits:
        for _, row, recording in with_recordings(_rows(config, split), config.recording, PACKAGINGS, config.root):
            for column in CAPTIONS:
                yield CorpusExample((Segment(recording),), SPLITS[split], "audiocaption", row[column].strip())


def _rows(config: ClothoConfig, split: str) -> Iterator[tuple[str, dict[str, str]]]:
    uris = [storage.join(config.root, name) for name in _captions(split)]
    uri = next(filter(storage.file_exists, uris), uris[0])
    for place, row in read_rows(uri, ["file_name", *CAPTIONS]):
        yield place, {**row, "split": split}


def _captions(split: str) -> list[str]:
    return [f"{folder}/clotho_captions_{split}.csv".lstrip("/") for folder in CAPTION_FOLDERS]
