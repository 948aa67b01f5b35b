"""SALMONN's own annotation files: `{"annotation": [{"path", "text", "task", "Q"?, "expand_wav"?}, …]}`.

Question answering about speech, sounds and music (Million Song, MusicNet), stories and co-reasoning sets come in this
form. `expand_wav` names further recordings that are joined to the first. Where a corpus has a reader of its own, give
its name and root (`corpus=librispeech audio_root=…/LibriSpeech`): both then share their clips.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from omegaconf import MISSING

from encoders.audio import Segment
from pipelines import storage
from pipelines.errors import UserError
from pipelines.interface.progress import Progress
from pipelines.manifest.corpora.slurp import slot_question
from pipelines.manifest.corpora.text_files import read_json_items
from pipelines.manifest.corpus import CorpusExample, PrepareConfig, require_folder
from pipelines.manifest.prepare import PrepareReport, write_manifest

OFFICIAL_TASKS = {
    "translation_ec": "en2zh",
    "translation_en2de": "en2de",
    "translation_en2ja": "en2ja",
    "music_description": "music_caption",
    "speech_separation": "overlapped_speech_recognition",
    "speech_query": "sqqa",
    "audio_story_telling": "audio_story",
    "speech_audio_query": "speech_audio_coreasoning",
}
"""Names of the official prompt file that differ from ours. Its `QA` is of speech, sounds or music: give `task`."""


@dataclass(frozen=True)
class AnnotationsConfig(PrepareConfig):
    annotation: str = MISSING
    """[URI] The JSON file."""
    audio_root: str = MISSING
    """[URI] Folder that its paths start from."""
    corpus: str = "annotations"
    """[name] Corpus name in the manifest; part of every clip's identity."""
    split: str = "train"
    """[name] Split that all its examples belong to."""
    task: str = ""
    """[name] Task of all its examples, such as sqa, aqa or mqa; empty: as the file says, official names translated."""
    path_prefix: str = ""
    """[path] Taken off the front of every path in the file, for files that hold another machine's paths."""


def prepare_annotations(config: AnnotationsConfig, progress: Progress | None = None) -> PrepareReport:
    """Write the manifest of one annotation file."""
    root = require_folder(config.audio_root, "audio_root")
    return write_manifest(read_annotations(config), corpus=config.corpus, root=root, config=config, progress=progress)


def read_annotations(config: AnnotationsConfig) -> Iterator[CorpusExample]:
    """Yield a file's examples.

    Raises:
        UserError: Naming the file and the entry that is not as described above.
    """
    for where, entry in read_json_items(config.annotation, "annotation"):
        for key in ("path", "text", "task"):
            if not isinstance(entry.get(key), str):
                raise UserError(f"{where}: {key!r} must be a text; found the keys {', '.join(map(repr, entry))}")
        if not isinstance(entry.get("Q", ""), str):
            raise UserError(f"{where}: 'Q' must be a text")
        expanded = entry.get("expand_wav") or []
        if not isinstance(expanded, list):
            raise UserError(f"{where}: 'expand_wav' must be a list of paths")
        segments = tuple(Segment(_below(str(path), config, where)) for path in [entry["path"], *expanded])
        task = config.task or OFFICIAL_TASKS.get(entry["task"], entry["task"])
        yield CorpusExample(segments, config.split, task, entry["text"], _question(task, entry.get("Q", "")))


def _question(task: str, asked: str) -> str | None:
    """Return the entry's own question; about a slot, official files give only its name, without punctuation."""
    return slot_question(asked) if task == "slot_filling" and asked[-1:].isalnum() else asked or None


def _below(path: str, config: AnnotationsConfig, where: str) -> str:
    """Return a path as a name below the audio root; absolute paths of other machines count from that root."""
    root = storage.resolve(config.audio_root)[1].rstrip("/") + "/"
    name = path.removeprefix(config.path_prefix).removeprefix(root).lstrip("/")
    if not name or ".." in name.split("/"):
        raise UserError(f"{where}: path {path!r} does not lead to a file below {config.audio_root}")
    return name
