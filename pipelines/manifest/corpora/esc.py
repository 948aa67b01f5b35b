"""ESC-50 (`esc50.csv` and its recordings) and the first ESC-10 (`001 - Dog bark/<fold>-….ogg`): what makes a sound.

Every sound becomes a question (`aqa`) whose answer is its category. One fold is the split `test`, the others `train`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from omegaconf import MISSING

from encoders.audio import Segment
from pipelines import storage
from pipelines.errors import MissingError
from pipelines.interface.config import require_range
from pipelines.interface.progress import Progress
from pipelines.manifest.corpora.recordings import with_recordings
from pipelines.manifest.corpora.text_files import read_rows
from pipelines.manifest.corpus import CorpusExample, PrepareConfig, require_folder
from pipelines.manifest.prepare import write_manifest
from pipelines.manifest.reports import PrepareReport

METADATA = ("meta/esc50.csv", "esc50.csv")
"""Of the repository, and of Kaggle's copy of it."""
PACKAGINGS = {
    "audio/{filename}": "the repository",
    "audio/audio/{filename}": "Kaggle's copy",
}


@dataclass(frozen=True)
class EscConfig(PrepareConfig):
    root: str = MISSING
    """[URI] The folder that holds meta/ and audio/ of ESC-50, or ESC-10's folder per category."""
    recording: str = ""
    """[template] A recording's name below the root, made of the columns of esc50.csv; empty: the first packaging of
    docs/packagings.md that is there. ESC-10's folders are read as they are."""
    test_fold: int = 5
    """[number] Fold that is held out, 1 to 5."""
    esc10: bool = False
    """[true/false] Of ESC-50, only the ten categories of ESC-10."""
    question: str = "What makes this sound? Answer with one or two words."
    """[text] What is asked about every sound."""
    corpus: str = "esc50"
    """[name] Corpus name in the manifest; part of every clip's identity."""

    def __post_init__(self) -> None:
        """Check the fold."""
        super().__post_init__()
        require_range(self, ("test_fold",), low=1, high=5)


def prepare_esc(config: EscConfig, progress: Progress | None = None) -> PrepareReport:
    """Write the manifest of whichever of the two is at `root`."""
    root = require_folder(config.root, "root")
    return write_manifest(read_esc(config), corpus=config.corpus, root=root, config=config, progress=progress)


def read_esc(config: EscConfig) -> Iterator[CorpusExample]:
    """Yield the sounds in the metadata's order, or category by category.

    Raises:
        MissingError: If neither layout is at the root.
        UserError: Naming the line that is malformed, or the column that is missing.
    """
    categories = [name for name in storage.list_folders(config.root) if re.fullmatch(r"\d{3} - .+", name)]
    tables = [uri for name in METADATA if storage.file_exists(uri := storage.join(config.root, name))]
    if tables:
        sounds = _metadata_sounds(config, tables[0])
    elif categories:
        sounds = _folder_sounds(config, categories)
    else:
        raise MissingError(f"root={config.root}: neither {METADATA[0]} nor folders such as '001 - Dog bark' are there")
    for recording, fold, category in sounds:
        split = "test" if fold == str(config.test_fold) else "train"
        answer = category.replace("_", " ").lower()
        yield CorpusExample((Segment(recording),), split, "aqa", answer, config.question)


def _metadata_sounds(config: EscConfig, table: str) -> Iterator[tuple[str, str, str]]:
    """Yield (recording, fold, category)."""
    rows = read_rows(table, ["filename", "fold", "category", "esc10"])
    for _, row, recording in with_recordings(rows, config.recording, PACKAGINGS, config.root):
        if row["esc10"].strip().lower() == "true" or not config.esc10:  # spreadsheets write TRUE
            yield recording, row["fold"], row["category"]


def _folder_sounds(config: EscConfig, categories: list[str]) -> Iterator[tuple[str, str, str]]:
    for folder in categories:
        for name in storage.list_names(storage.join(config.root, folder), ".ogg"):
            yield f"{folder}/{name}", name.partition("-")[0], folder.partition(" - ")[2]
