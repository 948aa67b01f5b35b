"""Clotho (2.1): `development/`, `validation/`, `evaluation/` and `clotho_captions_<split>.csv`, five captions a clip.

The splits are `train`, `dev` and `test` here.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from omegaconf import MISSING

from encoders.audio import Segment
from pipelines import storage
from pipelines.errors import UserError
from pipelines.interface.progress import Progress
from pipelines.manifest.corpora.recordings import recording_name
from pipelines.manifest.corpora.text_files import read_rows, require_layout
from pipelines.manifest.corpus import CorpusExample, PrepareConfig
from pipelines.manifest.prepare import PrepareReport, write_manifest

SPLITS = {"development": "train", "validation": "dev", "evaluation": "test"}
CAPTIONS = [f"caption_{number}" for number in range(1, 6)]


@dataclass(frozen=True)
class ClothoConfig(PrepareConfig):
    root: str = MISSING
    """[URI] The folder that holds the captions' files and a folder of recordings per split."""
    splits: list[str] = field(default_factory=lambda: list(SPLITS))
    """[names] Splits to read: development, validation, evaluation."""
    corpus: str = "clotho"
    """[name] Corpus name in the manifest; part of every clip's identity."""

    def __post_init__(self) -> None:
        """Refuse splits that there are not."""
        for split in self.splits:
            if split not in SPLITS:
                raise UserError(f"splits: {split!r} is not in Clotho; choose from {', '.join(SPLITS)}")


def prepare_clotho(config: ClothoConfig, progress: Progress | None = None) -> PrepareReport:
    """Write the manifest of the splits asked for."""
    entries = [entry for split in config.splits for entry in (_captions(split), split)]
    root = require_layout(config.root, entries, expected="captions and recordings of all splits=[…]")
    return write_manifest(read_clotho(config), corpus=config.corpus, root=root, config=config, progress=progress)


def read_clotho(config: ClothoConfig) -> Iterator[CorpusExample]:
    """Yield five captions a clip, in the files' order.

    Raises:
        UserError: Naming the file and line that is malformed, or the column that is missing.
    """
    for split in config.splits:
        for place, row in read_rows(storage.join(config.root, _captions(split)), ["file_name", *CAPTIONS]):
            segments = (Segment(recording_name("{split}/{file_name}", {**row, "split": split}, place)),)
            for column in CAPTIONS:
                yield CorpusExample(segments, SPLITS[split], "audiocaption", row[column].strip())


def _captions(split: str) -> str:
    return f"clotho_captions_{split}.csv"
