"""SALMONN's own annotation files: `{"annotation": [{"path", "text", "task"?, "Q"?, "expand_wav"?}, …]}`.

Question answering about speech, sounds and music (Million Song, MusicNet), stories and co-reasoning sets come in this
form. An entry without a task is asr, as in the official loader. `expand_wav` names further recordings that follow the
first. Where a corpus has a reader of its own, give its name and root (`corpus=librispeech audio_root=…/LibriSpeech`):
both then share their clips. A file of several corpora is read with `places`, best in YAML.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from omegaconf import MISSING

from encoders.audio import Segment
from pipelines import storage
from pipelines.errors import UserError
from pipelines.interface.progress import Progress
from pipelines.manifest.corpora.slurp import slot_question
from pipelines.manifest.corpora.text_files import read_json_items
from pipelines.manifest.corpus import CorpusExample, PrepareConfig, require_folder, require_question
from pipelines.manifest.prepare import write_manifest
from pipelines.manifest.reports import PrepareReport

OFFICIAL_TASKS = {
    "audiocaption_v2": "audiocaption",
    "translation_ec": "en2zh",
    "translation_en2de": "en2de",
    "translation_en2ja": "en2ja",
    "music_description": "music_caption",
    "speech_separation": "overlapped_speech_recognition",
    "speech_query": "sqqa",
    "audio_story_telling": "audio_story",
    "speech_audio_query": "speech_audio_coreasoning",
}
"""Names of the official prompt file that differ from ours."""
QUESTIONS = ("QA", "inference_QA", "gender_QA")
"""Official tasks whose entries bring their question; whether about speech, sounds or music the corpus decides."""


@dataclass(frozen=True)
class Place:
    """A corpus of an annotation file of several."""

    prefix: str = MISSING
    """[path] What the corpus's paths in the file begin with; it is taken off."""
    corpus: str = MISSING
    """[name] The corpus's name in the manifest."""
    root: str = MISSING
    """[URI] Folder that the rest of the paths starts from."""
    questions: str = ""
    """[name] Task of its entries of the official task QA: sqa, aqa or mqa."""


@dataclass(frozen=True)
class AnnotationsConfig(PrepareConfig):
    annotation: str = MISSING
    """[URI] The JSON file."""
    audio_root: str = ""
    """[URI] Folder that its paths start from; where the file holds several corpora, give `places` instead."""
    places: list[Place] = field(default_factory=list)
    """[list] For each corpus of the file its `prefix`, `corpus`, `root` and, for QA, `questions`."""
    corpus: str = "annotations"
    """[name] Corpus name in the manifest; part of every clip's identity."""
    split: str = "train"
    """[name] Split that all its examples belong to."""
    task: str = ""
    """[name] Task of all its examples, such as sqa, aqa or mqa; empty: as the file says, official names translated."""
    questions: str = ""
    """[name] Task of entries of the official task QA: sqa, aqa or mqa."""
    path_prefix: str = ""
    """[path] Taken off the front of every path in the file, for files that hold another machine's paths."""
    only_tasks: list[str] = field(default_factory=list)
    """[names] Tasks whose entries are read, as the file names them; none: all."""
    only_paths: list[str] = field(default_factory=list)
    """[paths] What the paths of entries begin with that are read; none: all."""

    def __post_init__(self) -> None:
        """Check that it says where recordings are."""
        super().__post_init__()
        if bool(self.audio_root) == bool(self.places):
            raise UserError("either audio_root=… or places=[…] says where the recordings are")


def prepare_annotations(config: AnnotationsConfig, progress: Progress | None = None) -> list[PrepareReport]:
    """Write the manifest of one annotation file, or of the corpora in it one after the other."""
    parts = _parts(config)
    for part in parts:
        require_folder(part.audio_root, "audio_root")
    return [
        write_manifest(
            read_annotations(part),
            corpus=part.corpus,
            root=storage.full_path(part.audio_root),
            config=part,
            progress=progress,
        )
        for part in parts
    ]


def _parts(config: AnnotationsConfig) -> list[AnnotationsConfig]:
    """Return a config for each corpus of the file.

    Raises:
        UserError: Naming the first entry that belongs to none of the places.
    """
    if not config.places:
        return [config]
    prefixes = tuple(place.prefix for place in config.places)
    for where, entry in _entries(config):
        if not str(entry.get("path", "")).startswith(prefixes):
            raise UserError(
                f"{where}: path {entry.get('path')!r} begins with no prefix of places ({', '.join(prefixes)}); "
                "only_paths=[…] chooses entries"
            )
    return [
        replace(
            config,
            places=[],
            audio_root=place.root,
            corpus=place.corpus,
            path_prefix=place.prefix,
            questions=place.questions or config.questions,
            only_paths=[path for path in config.only_paths or [place.prefix] if path.startswith(place.prefix)]
            or [place.prefix],
            append=config.append or number > 0,
        )
        for number, place in enumerate(config.places)
    ]


def _entries(config: AnnotationsConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the entries that the config chooses."""
    for where, entry in read_json_items(config.annotation, "annotation"):
        if config.only_paths and not str(entry.get("path", "")).startswith(tuple(config.only_paths)):
            continue
        if not config.only_tasks or entry.get("task", "asr") in config.only_tasks:
            yield where, entry


def read_annotations(config: AnnotationsConfig) -> Iterator[CorpusExample]:
    """Yield a file's examples.

    Raises:
        UserError: Naming the file and the entry that is not as described above.
    """
    asked: set[str] = set()
    for where, entry in _entries(config):
        for key in ("path", "text"):
            if not isinstance(entry.get(key), str):
                raise UserError(f"{where}: {key!r} must be a text; found the keys {', '.join(map(repr, entry))}")
        for key in ("task", "Q"):
            if not isinstance(entry.get(key, ""), str):
                raise UserError(f"{where}: {key!r} must be a text")
        expanded = entry.get("expand_wav") or []
        if not isinstance(expanded, list):
            raise UserError(f"{where}: 'expand_wav' must be a list of paths")
        segments = tuple(Segment(_below(str(path), config, where)) for path in [entry["path"], *expanded])
        task = config.task or _task(entry.get("task", "asr"), config, where)
        question = _question(task, entry.get("Q", ""))
        if question is None and task not in asked:
            require_question(task, where)
            asked.add(task)
        yield CorpusExample(segments, config.split, task, entry["text"], question)


def _task(named: str, config: AnnotationsConfig, where: str) -> str:
    if named not in QUESTIONS:
        return OFFICIAL_TASKS.get(named, named)
    if not config.questions:
        raise UserError(
            f"{where}: task {named}: questions=sqa|aqa|mqa says whether it is about speech, sounds or music"
        )
    return config.questions


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
