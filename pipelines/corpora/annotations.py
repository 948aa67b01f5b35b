"""SALMONN's own annotation files: `{"annotation": [{"path", "text", "task", "Q"?, "expand_wav"?}, …]}`.

The spoken and audio question-answering sets that its authors published come in this form. `expand_wav` names further
recordings that are joined to the first.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from encoders.audio import Segment
from pipelines import storage
from pipelines.prepare import CorpusExample, PrepareConfig, PrepareReport, require_folder, write_manifest
from pipelines.progress import Progress


@dataclass(frozen=True)
class AnnotationsConfig(PrepareConfig):
    annotation: str = MISSING
    """[URI] The JSON file."""
    audio_root: str = MISSING
    """[URI] Folder below which its paths lie."""
    corpus: str = "annotations"
    """[name] Corpus name in the manifest; part of every clip's identity."""
    split: str = "train"
    """[name] Split that all its examples belong to."""
    path_prefix: str = ""
    """[path] Taken off the front of every path in the file, for files that hold another machine's paths."""


def prepare_annotations(config: AnnotationsConfig, progress: Progress | None = None) -> PrepareReport:
    """Write the manifest of one annotation file."""
    root = require_folder(config.audio_root, "audio_root")
    return write_manifest(read_annotations(config), corpus=config.corpus, root=root, config=config, progress=progress)


def read_annotations(config: AnnotationsConfig) -> Iterator[CorpusExample]:
    """Yield a file's examples.

    Raises:
        ValueError: Naming the file and the entry that is not as described above.
    """
    for position, entry in enumerate(_entries(config.annotation)):
        where = f"{config.annotation}: annotation[{position}]"
        if not isinstance(entry, dict):
            raise ValueError(f"{where} is {type(entry).__name__}, not an object")
        for key in ("path", "text", "task"):
            if not isinstance(entry.get(key), str):
                raise ValueError(f"{where}: {key!r} must be a text; found the keys {', '.join(map(repr, entry))}")
        if not isinstance(entry.get("Q", ""), str):
            raise ValueError(f"{where}: 'Q' must be a text")
        expanded = entry.get("expand_wav") or []
        if not isinstance(expanded, list):
            raise ValueError(f"{where}: 'expand_wav' must be a list of paths")
        segments = tuple(Segment(_below(str(path), config, where)) for path in [entry["path"], *expanded])
        yield CorpusExample(segments, config.split, entry["task"], entry["text"], entry.get("Q") or None)


def _entries(uri: str) -> list[Any]:
    try:
        content = json.loads(storage.read_bytes(uri))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{uri}: not JSON ({error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("annotation"), list):
        raise ValueError(f"{uri}: has no list under 'annotation'")
    return list(content["annotation"])


def _below(path: str, config: AnnotationsConfig, where: str) -> str:
    """Return a path as a name below the audio root; absolute paths of other machines count from that root."""
    root = storage.resolve(config.audio_root)[1].rstrip("/") + "/"
    name = path.removeprefix(config.path_prefix).removeprefix(root).lstrip("/")
    if not name or ".." in name.split("/"):
        raise ValueError(f"{where}: path {path!r} does not lead to a file below {config.audio_root}")
    return name
