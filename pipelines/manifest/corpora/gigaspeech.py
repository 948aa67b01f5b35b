"""GigaSpeech (release 1.0.0): GigaSpeech.json and `audio/<source>/<part>/<recording>.opus`, hours long, in segments.

Where somebody has cut the segments, a template with a segment's own fields names them, and each is heard whole.

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
from pipelines.manifest.corpora.recordings import find_packaging, recording_name
from pipelines.manifest.corpora.text_files import read_json_items, require_layout
from pipelines.manifest.corpus import CorpusExample, PrepareConfig, Skipped
from pipelines.manifest.prepare import write_manifest
from pipelines.manifest.reports import PrepareReport

METADATA = "GigaSpeech.json"
PACKAGINGS = {
    "{path}": "its download scripts",
    "{stem}.flac": "its recordings converted to FLAC",
    "{stem}.wav": "its recordings converted to WAV",
    "segments/{sid}.wav": "its segments cut, a file each",
}
OF_SEGMENTS = ("sid", "start_ms", "end_ms", "begin_time", "end_time")
"""Fields of names that only a segment has."""
GARBAGE = {"<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>"}
"""What stands for the text of a segment without speech."""
PUNCTUATION = {"<COMMA>": ",", "<PERIOD>": ".", "<QUESTIONMARK>": "?", "<EXCLAMATIONPOINT>": "!"}
SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class GigaSpeechConfig(PrepareConfig):
    root: str = MISSING
    """[URI] The folder that holds GigaSpeech.json and audio/."""
    recording: str = ""
    """[template] A recording's name below the root, made of path and stem (path without its ending) or, for segments
    that are cut already, also of sid, start_ms, end_ms, begin_time and end_time; empty: the first packaging of
    docs/packagings.md that is there."""
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
        super().__post_init__()
        for split in self.splits:
            if split not in SPLITS:
                raise UserError(f"splits: {split!r} is not in GigaSpeech; choose from {', '.join(SPLITS)}")


def prepare_gigaspeech(config: GigaSpeechConfig, progress: Progress | None = None) -> PrepareReport:
    """Write the manifest of a training subset and the evaluation sets."""
    root = require_layout(config.root, [METADATA], expected=f"the folder that holds {METADATA} and the recordings")
    return write_manifest(read_gigaspeech(config), corpus=config.corpus, root=root, config=config, progress=progress)


def read_gigaspeech(config: GigaSpeechConfig) -> Iterator[CorpusExample | Skipped]:
    """Yield the segments in the metadata's order, one recording's in memory at a time, skipping those without speech.

    Raises:
        UserError: Naming the recording or segment that lacks an entry, or whose times are no span, or the tags that are
            there if no segment has one of those asked for.
    """
    template, rows = find_packaging(_segments(config), config.recording, PACKAGINGS, config.root)
    is_cut = any(f"{{{field}" in template for field in OF_SEGMENTS)
    for place, row in rows:
        recording, begin, text = recording_name(template, row, place), row["begin_time"], row["text"]
        if is_garbage(text):
            yield Skipped(recording, "segment without speech", f"{begin:g} s: {text}")
            continue
        span = () if is_cut else (begin, round(row["end_time"] - begin, 6))
        try:
            heard = Segment(recording, *span)
        except ValueError as error:  # times that are no span
            raise UserError(f"{place}: {error}") from None
        yield CorpusExample((heard,), row["split"], "asr", written(text, punctuation=config.punctuation))


def _segments(config: GigaSpeechConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the segments of the splits asked for."""
    tags = {"train": f"{{{config.subset}}}", "dev": "{DEV}", "test": "{TEST}"}
    split_of = {tags[split]: split for split in config.splits}
    met, found = set[str](), False
    for place, audio in read_json_items(storage.join(config.root, METADATA), "audios"):
        path, segments = audio.get("path"), audio.get("segments")
        if not isinstance(path, str) or not isinstance(segments, list):
            raise UserError(f"{place}: needs a text 'path' and a list 'segments'")
        for number, segment in enumerate(segments):
            try:
                split = next((split_of[tag] for tag in segment["subsets"] if tag in split_of), None)
                met.update(segment["subsets"])
                if split is not None:
                    found = True
                    yield f"{place}: segments[{number}]", _segment(path, split, segment)
            except KeyError as error:
                raise UserError(f"{place}: segments[{number}]: {error} is missing") from None
            except (AttributeError, TypeError, ValueError) as error:
                raise UserError(f"{place}: segments[{number}]: {error}") from None
    if met and not found:
        asked, there = (", ".join(sorted(names)) for names in (split_of, met))
        raise UserError(f"{config.root}/{METADATA}: no segment is tagged {asked}; there are {there}")


def _segment(path: str, split: str, segment: Mapping[str, Any]) -> dict[str, Any]:
    begin, end, text = float(segment["begin_time"]), float(segment["end_time"]), segment["text_tn"]
    return {
        "path": path,
        "stem": path.rpartition(".")[0] or path,
        "sid": segment.get("sid", ""),
        "split": split,
        "begin_time": begin,
        "end_time": end,
        "start_ms": round(1000 * begin),
        "end_ms": round(1000 * end),
        "text": str.strip(text),
    }


def is_garbage(text: str) -> bool:
    """Say whether a text stands for a segment without speech."""
    return bool(GARBAGE & set(text.split()))


def written(text: str, *, punctuation: bool) -> str:
    """Return a text of the corpus in lower case; a punctuation tag becomes a mark after the word before it."""
    words: list[str] = []
    for word in text.split():
        if word not in PUNCTUATION:
            words.append(word.lower())
        elif words and punctuation:
            words[-1] += PUNCTUATION[word]
    return " ".join(words)
