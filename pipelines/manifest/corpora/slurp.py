"""SLURP (2020): `dataset/slurp/<split>.jsonl` and recordings, each sentence read by several people.

The split `train_synthetic` was spoken by a speech synthesiser; its examples belong to `train`.

Every kind of slot in a sentence becomes a question about each of its recordings; the answer is what fills the slot, as
`sentence_annotation` has it: `wake me up at [time : eight] o'clock`. `devel` is the split `dev` here.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from encoders.audio import Segment
from pipelines import storage
from pipelines.errors import UserError
from pipelines.interface.progress import Progress
from pipelines.manifest.corpora.recordings import recording_folders, require_parts, with_recordings
from pipelines.manifest.corpora.text_files import read_lines
from pipelines.manifest.corpus import CorpusExample, PrepareConfig, Skipped
from pipelines.manifest.prepare import write_manifest
from pipelines.manifest.reports import PrepareReport

SPLITS = {"train": "train", "devel": "dev", "test": "test", "train_synthetic": "train"}
FOLDERS = {"train_synthetic": "slurp_synth"}
"""Where recordings of a split are, if not in slurp_real."""
PACKAGINGS = {
    "audio/{folder}/{file}": "its script download_audio.sh, archives unpacked in place",
    "scripts/audio/{folder}/{file}": "the same script, run in its own folder",
    "{folder}/{file}": "its archives, unpacked beside dataset/",
}
SLOT = re.compile(r"\[\s*(\w+)\s*:\s*([^\]]+?)\s*\]")


@dataclass(frozen=True)
class SlurpConfig(PrepareConfig):
    root: str = MISSING
    """[URI] The repository's folder, with dataset/slurp/ and the recordings in it."""
    recording: str = ""
    """[template] A recording's name below the root, made of split, folder (slurp_real or slurp_synth) and file; empty:
    the first packaging of docs/packagings.md that is there."""
    splits: list[str] = field(default_factory=lambda: ["train", "devel", "test"])
    """[names] Splits to read: train, devel, test, train_synthetic."""
    corpus: str = "slurp"
    """[name] Corpus name in the manifest; part of every clip's identity."""

    def __post_init__(self) -> None:
        """Refuse splits that there are not."""
        super().__post_init__()
        for split in self.splits:
            if split not in SPLITS:
                raise UserError(f"splits: {split!r} is not in SLURP; choose from {', '.join(SPLITS)}")


def prepare_slurp(config: SlurpConfig, progress: Progress | None = None) -> PrepareReport:
    """Write the manifest of the splits asked for."""
    parts = {
        split: [
            [f"dataset/slurp/{split}.jsonl"],
            recording_folders(config.recording, PACKAGINGS, split=split, folder=_folder(split)),
        ]
        for split in SPLITS
    }
    root = require_parts(
        config.root, "splits", config.splits, parts, expected="the repository's folder, with its audio"
    )
    return write_manifest(read_slurp(config), corpus=config.corpus, root=root, config=config, progress=progress)


def read_slurp(config: SlurpConfig) -> Iterator[CorpusExample | Skipped]:
    """Yield the slots of each recording in the files' order; recordings that say something else are skipped.

    Raises:
        UserError: Naming the line that is not such a sentence.
    """
    for split in config.splits:
        for _, row, recording in with_recordings(_read(config, split), config.recording, PACKAGINGS, config.root):
            if row["slots"] and row["status"] != "correct":
                yield Skipped(recording, f"marked {row['status']}")
                continue
            for slot, filler in row["slots"].items():
                yield CorpusExample((Segment(recording),), SPLITS[split], "slot_filling", filler, slot_question(slot))


def _read(config: SlurpConfig, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each reader's recording, with the slots of its sentence."""
    for place, line in read_lines(storage.join(config.root, f"dataset/slurp/{split}.jsonl")):
        slots, readers = _sentence(line, place)
        for file, status in readers:
            yield place, {"split": split, "folder": _folder(split), "file": file, "status": status, "slots": slots}


def _folder(split: str) -> str:
    return FOLDERS.get(split, "slurp_real")


def slot_question(slot: str) -> str:
    """Return what is asked about a slot by its name."""
    return f"What is the {slot.replace('_', ' ')} in the speech?"


def _sentence(line: str, place: str) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Return slot -> what fills it, joined by commas where it comes twice, and (file, status) of every reader."""
    try:
        entry: dict[str, Any] = json.loads(line)
        found = SLOT.findall(entry["sentence_annotation"])
        readers = [(reader["file"], reader.get("status", "correct")) for reader in entry["recordings"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place}: not a sentence with its annotation and recordings ({error!r})") from None
    slots = {slot: ", ".join(filler for other, filler in found if other == slot) for slot, _ in found}
    return slots, readers
