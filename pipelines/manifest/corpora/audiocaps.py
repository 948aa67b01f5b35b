"""AudioCaps (1.0 and 2.0): `train.csv`, `val.csv`, `test.csv` of captions of ten seconds of videos, cut by each user.

Training clips have one caption in 1.0, the others five. The corpus publishes no recordings and many videos are gone:
captions whose recording is not there are skipped. `val` is the split `dev` here.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from omegaconf import MISSING

from encoders.audio import Segment
from pipelines import storage
from pipelines.errors import UserError
from pipelines.interface.progress import Progress
from pipelines.manifest.corpora.recordings import NOT_THERE, Recordings, recording_name
from pipelines.manifest.corpora.text_files import read_rows, require_layout
from pipelines.manifest.corpus import CorpusExample, PrepareConfig, Skipped, require_folder
from pipelines.manifest.prepare import PrepareReport, write_manifest

SPLITS = {"train": "train", "val": "dev", "test": "test"}


@dataclass(frozen=True)
class AudioCapsConfig(PrepareConfig):
    root: str = MISSING
    """[URI] Folder that the recordings' paths start from."""
    captions: str = ""
    """[URI] Folder of train.csv, val.csv and test.csv; empty: the root."""
    recording: str = "{split}/{youtube_id}.wav"
    """[template] A recording's name below the root, made of split (as the file is named) and the columns audiocap_id,
    youtube_id and start_time."""
    splits: list[str] = field(default_factory=lambda: list(SPLITS))
    """[names] Files to read: train, val, test."""
    corpus: str = "audiocaps"
    """[name] Corpus name in the manifest; part of every clip's identity."""

    def __post_init__(self) -> None:
        """Refuse splits that there are not."""
        for split in self.splits:
            if split not in SPLITS:
                raise UserError(f"splits: {split!r} is not in AudioCaps; choose from {', '.join(SPLITS)}")


def prepare_audiocaps(config: AudioCapsConfig, progress: Progress | None = None) -> PrepareReport:
    """Write the manifest of the splits asked for."""
    root = require_folder(config.root, "root")
    files = [f"{split}.csv" for split in config.splits]
    require_layout(config.captions or root, files, expected="the captions of all splits=[…]; or give captions=…")
    return write_manifest(read_audiocaps(config), corpus=config.corpus, root=root, config=config, progress=progress)


def read_audiocaps(config: AudioCapsConfig) -> Iterator[CorpusExample | Skipped]:
    """Yield the captions in the files' order.

    Raises:
        FileNotFoundError: If not one of the recordings is there.
        UserError: Naming the file and line that is malformed, or the column that is missing.
    """
    there = Recordings(config.root)
    for split in config.splits:
        uri = storage.join(config.captions or config.root, f"{split}.csv")
        for place, row in read_rows(uri, ["audiocap_id", "youtube_id", "start_time", "caption"]):
            recording = recording_name(config.recording, {**row, "split": split}, place)
            if recording not in there:
                yield Skipped(recording, NOT_THERE)
            else:
                yield CorpusExample((Segment(recording),), SPLITS[split], "audiocaption", row["caption"].strip())
    there.require_any()
