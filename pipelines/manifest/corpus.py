"""What a reader of a corpus needs: its shared keys, the examples it yields, the entries it skips."""

from dataclasses import dataclass, field
from typing import Literal

from omegaconf import MISSING

from cluster.config import RayConfig
from encoders.audio import CLIP_SECONDS, MOST_SECONDS, Segment
from llm.errors import LLMError
from llm.prompts import question_for
from pipelines import storage
from pipelines.errors import MissingError, UserError
from pipelines.interface.config import require_range
from pipelines.interface.words import command


@dataclass(frozen=True)
class PrepareConfig:
    """The keys that all corpora share."""

    out: str = MISSING
    """[URI] Folder of the manifest to write."""
    append: bool = False
    """[true/false] Add to the manifest that is there; what it holds already is not written twice."""
    missing: Literal["skip", "keep", "fail"] = "skip"
    """[name] What happens to clips whose recordings are not there, or empty: skip leaves them out and lists them, keep
    leaves them to the extraction, fail stops at the first."""
    max_clip_seconds: float = 30.0
    """[seconds] Longer clips are cut there, and counted; above 30, give extract the same."""
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        """Check ranges."""
        require_range(self, ("max_clip_seconds",), low=CLIP_SECONDS, high=MOST_SECONDS)

    def next_step(self) -> str:
        """Return the command that goes on from here."""
        keys = {"manifest": self.out, "cache": "CACHE", "whisper": "tiny", "beats": "tiny"}
        if self.max_clip_seconds > CLIP_SECONDS:
            keys["max_clip_seconds"] = f"{self.max_clip_seconds:g}"
        return command("extract", **keys)


@dataclass(frozen=True)
class CorpusExample:
    """One example as a corpus tells it; recordings are names below the corpus's root."""

    segments: tuple[Segment, ...]
    split: str
    task: str
    answer: str
    question: str | None = None


@dataclass(frozen=True)
class Skipped:
    """What a corpus lists and its reader leaves out."""

    recording: str
    reason: str
    """One of few, such as `longer than 180 s`: the summary counts them."""
    detail: str = ""


def some_file(root: str, depth: int = 4) -> str:
    """Return the URI of a file below a folder, for a message that shows how names look there; empty if none is near."""
    for name in storage.list_names(root)[:1]:
        return storage.join(root, name)
    folders = storage.list_folders(root)[:8] if depth else []
    return next((found for name in folders if (found := some_file(storage.join(root, name), depth - 1))), "")


def require_folder(uri: str, key: str) -> str:
    """Return the folder's full URI.

    Raises:
        MissingError: If there is no such folder, naming the key.
    """
    if not storage.folder_exists(uri):
        raise MissingError(f"{key}={uri}: no such folder")
    return storage.full_path(uri)


def require_question(task: str, place: str) -> None:
    """Refuse a task that has no questions of its own, for examples that bring none.

    Raises:
        UserError: Naming the place and, if the task is unknown, the nearest ones.
    """
    try:
        question_for(task)
    except LLMError as error:
        raise UserError(f"{place}: {error}") from None
