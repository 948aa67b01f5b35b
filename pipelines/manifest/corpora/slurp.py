"""SLURP (2020): `dataset/slurp/<split>.jsonl` and `audio/slurp_real/*.flac`, each sentence read by several people.

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
from pipelines.manifest.corpora.recordings import recording_name
from pipelines.manifest.corpora.text_files import read_lines, require_layout
from pipelines.manifest.corpus import CorpusExample, PrepareConfig, Skipped
from pipelines.manifest.prepare import PrepareReport, write_manifest

SPLITS = {"train": "train", "devel": "dev", "test": "test"}
SLOT = re.compile(r"\[\s*(\w+)\s*:\s*([^\]]+?)\s*\]")


@dataclass(frozen=True)
class SlurpConfig(PrepareConfig):
    root: str = MISSING
    """[URI] The repository's folder, with dataset/slurp/ and audio/slurp_real/ in it."""
    splits: list[str] = field(default_factory=lambda: list(SPLITS))
    """[names] Splits to read: train, devel, test."""
    corpus: str = "slurp"
    """[name] Corpus name in the manifest; part of every clip's identity."""

    def __post_init__(self) -> None:
        """Refuse splits that there are not."""
        for split in self.splits:
            if split not in SPLITS:
                raise UserError(f"splits: {split!r} is not in SLURP; choose from {', '.join(SPLITS)}")


def prepare_slurp(config: SlurpConfig, progress: Progress | None = None) -> PrepareReport:
    """Write the manifest of the splits asked for."""
    entries = ["audio/slurp_real", *(f"dataset/slurp/{split}.jsonl" for split in config.splits)]
    root = require_layout(config.root, entries, expected="the repository's folder, with its audio")
    return write_manifest(read_slurp(config), corpus=config.corpus, root=root, config=config, progress=progress)


def read_slurp(config: SlurpConfig) -> Iterator[CorpusExample | Skipped]:
    """Yield the slots of each recording in the files' order; recordings that say something else are skipped.

    Raises:
        UserError: Naming the line that is not such a sentence.
    """
    for split in config.splits:
        for place, line in read_lines(storage.join(config.root, f"dataset/slurp/{split}.jsonl")):
            slots, recordings = _sentence(line, place)
            for recording, status in recordings:
                if slots and status != "correct":
                    yield Skipped(recording, f"marked {status}")
                    continue
                for slot, filler in slots.items():
                    yield CorpusExample(
                        (Segment(recording),), SPLITS[split], "slot_filling", filler, slot_question(slot)
                    )


def slot_question(slot: str) -> str:
    """Return what is asked about a slot by its name."""
    return f"What is the {slot.replace('_', ' ')} in the speech?"


def _sentence(line: str, place: str) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Return slot -> what fills it, joined by commas where it comes twice, and (recording, status) of every reader."""
    try:
        entry: dict[str, Any] = json.loads(line)
        found = SLOT.findall(entry["sentence_annotation"])
        readers = [(reader["file"], reader.get("status", "correct")) for reader in entry["recordings"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place}: not a sentence with its annotation and recordings ({error!r})") from None
    slots = {slot: ", ".join(filler for other, filler in found if other == slot) for slot, _ in found}
    return slots, [
        (recording_name("audio/slurp_real/{file}", {"file": name}, place), status) for name, status in readers
    ]
