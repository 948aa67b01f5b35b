"""Libri2Mix (as its generation script writes it): `wav16k/max/<subset>/<mixture>/<id>.wav` and tables of the mixtures.

The tables, `wav16k/max/metadata/mixture_<subset>_<mixture>.csv`, hold no texts: these are LibriSpeech's, found by the
two utterances that a mixture's id is made of. Only mode `max` is read: `min` cuts the longer utterance off.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

from omegaconf import MISSING

from encoders.audio import Segment
from pipelines import storage
from pipelines.errors import UserError
from pipelines.interface.progress import Progress
from pipelines.manifest.corpora.librispeech import read_transcripts
from pipelines.manifest.corpora.recordings import require_parts, with_recordings
from pipelines.manifest.corpora.text_files import read_rows
from pipelines.manifest.corpus import CorpusExample, PrepareConfig, require_folder
from pipelines.manifest.prepare import write_manifest
from pipelines.manifest.reports import PrepareReport

PACKAGINGS = {"wav{rate}/max/{subset}/{mixture}/{name}": "its generation script"}
LIBRISPEECH_SPLITS = {
    "train-360": "train-clean-360",
    "train-100": "train-clean-100",
    "dev": "dev-clean",
    "test": "test-clean",
}


@dataclass(frozen=True)
class LibriMixConfig(PrepareConfig):
    root: str = MISSING
    """[URI] The folder Libri2Mix, with wav16k or wav8k in it."""
    librispeech: str = MISSING
    """[URI] The folder LibriSpeech; only its transcripts are read."""
    recording: str = ""
    """[template] A mixture's name below the root, made of rate, subset, mixture and name (of the file in its table);
    empty: the packaging of docs/packagings.md."""
    subsets: list[str] = field(default_factory=lambda: list(LIBRISPEECH_SPLITS))
    """[names] Subsets to read, which become the splits."""
    rate: Literal["16k", "8k"] = "16k"
    """[Hz] Sampling rate of the mixtures to read."""
    mixture: Literal["mix_clean", "mix_both"] = "mix_clean"
    """[name] Two speakers alone, or with noise."""
    corpus: str = "librimix"
    """[name] Corpus name in the manifest; part of every clip's identity."""

    def __post_init__(self) -> None:
        """Refuse subsets that there are not."""
        super().__post_init__()
        for subset in self.subsets:
            if subset not in LIBRISPEECH_SPLITS:
                known = ", ".join(LIBRISPEECH_SPLITS)
                raise UserError(f"subsets: {subset!r} is not in Libri2Mix; choose from {known}")

    @property
    def folder(self) -> str:
        """Folder of the mixtures below the root."""
        return f"wav{self.rate}/max"


def prepare_librimix(config: LibriMixConfig, progress: Progress | None = None) -> PrepareReport:
    """Write the manifest of some subsets."""
    tables = {subset: [[f"{config.folder}/metadata/{_table(config, subset)}"]] for subset in LIBRISPEECH_SPLITS}
    root = require_parts(
        config.root, "subsets", config.subsets, tables, expected="the folder Libri2Mix, generated with --modes max"
    )
    return write_manifest(read_librimix(config), corpus=config.corpus, root=root, config=config, progress=progress)


def read_librimix(config: LibriMixConfig) -> Iterator[CorpusExample]:
    """Yield the mixtures in their tables' order; a subset's transcripts are in memory (train-360: 104,000).

    The answer is the longer transcript, a line break, and the shorter, an order that can be heard: both start at once,
    and who says more mostly goes on alone. Which is source 1 cannot be heard.

    Raises:
        FileNotFoundError: If LibriSpeech's folder is not there.
        UserError: Naming the row that is malformed, or whose utterances have no transcript.
    """
    librispeech = require_folder(config.librispeech, "librispeech")
    rate_hz = int(config.rate.removesuffix("k")) * 1000
    for subset in config.subsets:
        transcripts = {
            said["utterance"]: said["text"] for _, said in read_transcripts(librispeech, LIBRISPEECH_SPLITS[subset])
        }
        rows = _mixtures(config, subset)
        for place, row, recording in with_recordings(rows, config.recording, PACKAGINGS, config.root):
            utterances = row["mixture_ID"].split("_")
            for utterance in utterances:
                if utterance not in transcripts:
                    split = LIBRISPEECH_SPLITS[subset]
                    raise UserError(f"{place}: no transcript of {utterance!r} below {librispeech}/{split}")
            segment = Segment(recording, 0.0, _samples(row["length"], place) / rate_hz)
            texts = sorted((transcripts[utterance] for utterance in utterances), key=len, reverse=True)
            yield CorpusExample((segment,), subset, "overlapped_speech_recognition", "\n".join(texts))


def _mixtures(config: LibriMixConfig, subset: str) -> Iterator[tuple[str, dict[str, str]]]:
    table = storage.join(config.root, config.folder, "metadata", _table(config, subset))
    of_all = {"rate": config.rate, "subset": subset, "mixture": config.mixture}
    for place, row in read_rows(table, ["mixture_ID", "mixture_path", "length"]):
        # The paths are of the machine that made the mixtures.
        yield place, {**row, **of_all, "name": PurePosixPath(row["mixture_path"]).name}


def _table(config: LibriMixConfig, subset: str) -> str:
    return f"mixture_{subset}_{config.mixture}.csv"


def _samples(length: str, place: str) -> int:
    try:
        samples = int(float(length))  # some versions of the script write 123.0
    except (ValueError, OverflowError):
        samples = 0
    if samples <= 0:
        raise UserError(f"{place}: length {length!r} must be a number of samples")
    return samples
