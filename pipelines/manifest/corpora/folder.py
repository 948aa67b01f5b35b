"""A folder of recordings without a table: what is heard is said by the folders they lie in, or by one text for all."""

from collections.abc import Iterator
from dataclasses import dataclass

from omegaconf import MISSING

from encoders.audio import SOUND_ENDINGS, Segment
from pipelines import storage
from pipelines.errors import MissingError, UserError
from pipelines.interface.progress import Progress
from pipelines.manifest.corpus import CorpusExample, PrepareConfig, require_folder, require_question
from pipelines.manifest.prepare import write_manifest
from pipelines.manifest.reports import PrepareReport

FIELDS = ("folder", "top", "name")


@dataclass(frozen=True)
class FolderConfig(PrepareConfig):
    root: str = MISSING
    """[URI] The folder; WAV, FLAC, Ogg, Opus and MP3 in it are taken, at any depth."""
    corpus: str = "folder"
    """[name] Corpus name in the manifest; part of every clip's identity."""
    answer: str = "{folder}"
    """[template] What is heard: {folder} is the name of the folder that a recording lies in, {top} of the first folder
    below root, {name} the recording's without its ending. A text without these is the answer to all."""
    task: str = "audiocaption"
    """[name] Task of all recordings."""
    question: str = ""
    """[text] What is asked about them; empty: the task's own questions."""
    split: str = "train"
    """[template] Split of a recording, likewise: {top} where the first folders are train, test, …"""

    def __post_init__(self) -> None:
        """Check task and templates."""
        super().__post_init__()
        if not self.question:
            require_question(self.task, f"task={self.task}")
        for key in ("answer", "split"):
            fill(getattr(self, key), dict.fromkeys(FIELDS, "x"), key)


def prepare_folder(config: FolderConfig, progress: Progress | None = None) -> PrepareReport:
    """Write the manifest of a folder of recordings."""
    root = require_folder(config.root, "root")
    return write_manifest(read_folder(config, root), corpus=config.corpus, root=root, config=config, progress=progress)


def read_folder(config: FolderConfig, root: str) -> Iterator[CorpusExample]:
    """Yield an example a recording, in alphabetical order of their paths.

    Raises:
        MissingError: If there is no recording.
        UserError: Naming a recording whose answer or split would be empty.
    """
    recordings = storage.list_below(root, SOUND_ENDINGS)
    if not recordings:
        raise MissingError(f"root={config.root}: no recording below it ({', '.join(SOUND_ENDINGS)})")
    for recording in recordings:
        *folders, file = recording.split("/")
        fields = {"folder": folders[-1] if folders else "", "top": folders[0] if folders else ""}
        fields["name"] = file.rpartition(".")[0]
        texts = {key: fill(getattr(config, key), fields, key) for key in ("answer", "split")}
        for key, text in texts.items():
            if not text:
                raise UserError(
                    f"{storage.join(root, recording)}: lies in no folder below root, so {key}={getattr(config, key)} "
                    f"is empty; {key}=TEXT is one for all; recordings without answers: salmonn ask audio=FOLDER"
                )
        yield CorpusExample(
            (Segment(recording),), texts["split"], config.task, texts["answer"], config.question or None
        )


def fill(template: str, fields: dict[str, str], key: str) -> str:
    """Return a template with its fields filled in, blanks at its ends cut.

    Raises:
        UserError: If it is not a template of `FIELDS`.
    """
    try:
        return template.format(**fields).strip()
    except (AttributeError, IndexError, KeyError, ValueError) as error:
        known = ", ".join(f"{{{field}}}" for field in FIELDS)
        raise UserError(f"{key}={template}: not a template of {known} ({error!r})") from None
