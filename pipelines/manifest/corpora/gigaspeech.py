"""GigaSpeech (release 1.0.0): GigaSpeech.json and `audio/<source>/<part>/<recording>.opus`, hours long, in segments.

Subsets are nested: a segment is tagged with each one that holds it, `{XS}` … `{XL}`, or `{DEV}` or `{TEST}`. Texts are
upper case in the corpus, lower case here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from omegaconf import MISSING

from encoders.audio import Segment
from pipelines import storage
from pipelines.errors import UserError
from pipelines.interface.progress import Progress
from pipelines.manifest.corpora.text_files import read_json_items, require_layout
from pipelines.manifest.corpus import CorpusExample, PrepareConfig, Skipped
from pipelines.manifest.prepare import PrepareReport, write_manifest

METADATA = "GigaSpeech.json"
GARBAGE = {"<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>"}
"""What stands for the text of a segment without speech."""
PUNCTUATION = {"<COMMA>": ",", "<PERIOD>": ".", "<QUESTIONMARK>": "?", "<EXCLAMATIONPOINT>": "!"}
SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class GigaSpeechConfig(PrepareConfig):
    root: str = MISSING
    """[URI] The folder that holds GigaSpeech.json and audio/."""
    subset: Literal["XS", "S", "M", "L", "XL"] = "M"
    """[name] Training subset: 10, 250, 1,000, 2,500 or 10,000 h."""
    splits: list[str] = field(default_factory=lambda: list(SPLITS))
    """[names] Splits to read: train (the subset), dev, test."""
    punctuation: bool = True
    """[true/false] Write the tags <COMMA>, <PERIOD> … as marks; false leaves them out."""
    corpus: str = "gigaspeech"
    """[name] Corpus name in the manifest; part of every clip's identity."""

    def __post_init__(self) -> None:
        """Refuse splits that there are not."""
        for split in self.splits:
            if split not in SPLITS:
                raise UserError(f"splits: {split!r} is not in GigaSpeech; choose from {', '.join(SPLITS)}")


def prepare_gigaspeech(config: GigaSpeechConfig, progress: Progress | None = None) -> PrepareReport:
    """Write the manifest of a training subset and the evaluation sets."""
    root = require_layout(config.root, [METADATA, "audio"], expected=f"the folder that holds {METADATA} and audio/")
    return write_manifest(read_gigaspeech(config), corpus=config.corpus, root=root, config=config, progress=progress)


def read_gigaspeech(config: GigaSpeechConfig) -> Iterator[CorpusExample | Skipped]:
    """Yield the segments in the metadata's order, one recording's in memory at a time, skipping those without speech.

    Raises:
        UserError: Naming the recording or segment that lacks an entry, or whose times are no span.
    """
    tags = {"train": f"{{{config.subset}}}", "dev": "{DEV}", "test": "{TEST}"}
    split_of = {tags[split]: split for split in config.splits}
    for place, audio in read_json_items(storage.join(config.root, METADATA), "audios"):
        path, segments = audio.get("path"), audio.get("segments")
        if not isinstance(path, str) or not isinstance(segments, list):
            raise UserError(f"{place}: needs a text 'path' and a list 'segments'")
        for number, segment in enumerate(segments):
            try:
                split = next((split_of[tag] for tag in segment["subsets"] if tag in split_of), None)
                if split is not None:
                    yield _entry(path, split, segment, punctuation=config.punctuation)
            except KeyError as error:
                raise UserError(f"{place}: segments[{number}]: {error} is missing") from None
            except (AttributeError, TypeError, ValueError) as error:
                raise UserError(f"{place}: segments[{number}]: {error}") from None


def _entry(path: str, split: str, segment: Mapping[str, Any], *, punctuation: bool) -> CorpusExample | Skipped:
    begin, end, text = float(segment["begin_time"]), float(segment["end_time"]), segment["text_tn"]
    if GARBAGE & set(text.split()):
        return Skipped(path, "segment without speech", f"{begin:g} s: {text}")
    heard = Segment(path, begin, round(end - begin, 6))
    return CorpusExample((heard,), split, "asr", _written(text, punctuation=punctuation))


def _written(text: str, *, punctuation: bool) -> str:
    """Return a text in lower case; a punctuation tag becomes a mark after the word before it."""
    words: list[str] = []
    for word in text.split():
        if word not in PUNCTUATION:
            words.append(word.lower())
        elif words and punctuation:
            words[-1] += PUNCTUATION[word]
    return " ".join(words)
