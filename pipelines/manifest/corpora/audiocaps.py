"""AudioCaps (1.0 and 2.0): `train.csv`, `val.csv`, `test.csv` of captions of ten seconds of videos, cut by each user.

Training clips have one caption in 1.0, the others five. The corpus publishes no recordings and many videos are gone:
captions whose recording is not there are skipped. `val` is the split `dev` here.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from encoders.audio import Segment
from pipelines import storage
from pipelines.errors import UserError
from pipelines.interface.progress import Progress
from pipelines.manifest.corpora.recordings import require_parts, with_recordings, with_times
from pipelines.manifest.corpora.text_files import read_rows
from pipelines.manifest.corpus import CorpusExample, PrepareConfig, require_folder
from pipelines.manifest.prepare import write_manifest
from pipelines.manifest.reports import PrepareReport

SPLITS = {"train": "train", "val": "dev", "test": "test"}
CUT_SECONDS = 10.0
PACKAGINGS = {
    "{split}/{youtube_id}.wav": "own downloads, cut to the ten seconds",
    "{split}/{audiocap_id}.wav": "audiocaps-download with format wav",
    "{split}/{audiocap_id}.ogg": "audiocaps-download as it comes (vorbis)",
    "audio_32000Hz/{split}/{youtube_id}_{start_time}.flac": "aac-datasets, whose captions are in csv_files_v1",
    "{split}/{youtube_id}_{start_ms}_{end_ms}.wav": "downloads named as AudioSet's are, by milliseconds",
}


@dataclass(frozen=True)
class AudioCapsConfig(PrepareConfig):
    root: str = MISSING
    """[URI] Folder that the recordings' paths start from."""
    captions: str = ""
    """[URI] Folder of train.csv, val.csv and test.csv; empty: the root."""
    recording: str = ""
    """[template] A recording's name below the root, made of split (as the file is named), the columns audiocap_id,
    youtube_id and start_time, and end_time, start_ms and end_ms; empty: the first packaging of docs/packagings.md that
    is there."""
    splits: list[str] = field(default_factory=lambda: list(SPLITS))
    """[names] Files to read: train, val, test."""
    corpus: str = "audiocaps"
    """[name] Corpus name in the manifest; part of every clip's identity."""

    def __post_init__(self) -> None:
        """Refuse splits that there are not."""
        super().__post_init__()
        for split in self.splits:
            if split not in SPLITS:
                raise UserError(f"splits: {split!r} is not in AudioCaps; choose from {', '.join(SPLITS)}")


def prepare_audiocaps(config: AudioCapsConfig, progress: Progress | None = None) -> PrepareReport:
    """Write the manifest of the splits asked for."""
    root = require_folder(config.root, "root")
    require_parts(
        config.captions or root,
        "splits",
        config.splits,
        {split: [[f"{split}.csv"]] for split in SPLITS},
        expected="the captions of all splits=[…]; or give captions=…",
    )
    return write_manifest(read_audiocaps(config), corpus=config.corpus, root=root, config=config, progress=progress)


def read_audiocaps(config: AudioCapsConfig) -> Iterator[CorpusExample]:
    """Yield the captions in the files' order.

    Raises:
        UserError: Naming the file and line that is malformed, or the column that is missing.
    """
    for split in config.splits:
        for _, row, recording in with_recordings(_rows(config, split), config.recording, PACKAGINGS, config.root):
            yield CorpusExample((Segment(recording),), SPLITS[split], "audiocaption", row["caption"].strip())


def _rows(config: AudioCapsConfig, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    uri = storage.join(config.captions or config.root, f"{split}.csv")
    for place, row in read_rows(uri, ["audiocap_id", "youtube_id", "start_time", "caption"]):
        yield place, {**with_times(row, "start_time", seconds=CUT_SECONDS), "split": split}
