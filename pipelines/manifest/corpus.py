"""What a reader of a corpus needs: its shared keys, the examples it yields, the entries it skips."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from cluster.config import RayConfig
from encoders.audio import Segment
from pipelines import storage
from pipelines.errors import MissingError


@dataclass(frozen=True)
class PrepareConfig:
    """The keys that all corpora share."""

    out: str = MISSING
    """[URI] Folder of the manifest to write."""
    append: bool = False
    """[true/false] Add to the manifest that is there; what it holds already is not written twice."""
    ray: RayConfig = field(default_factory=RayConfig)


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


def require_folder(uri: str, key: str) -> str:
    """Return the folder's full URI.

    Raises:
        MissingError: If there is no such folder, naming the key.
    """
    if not storage.folder_exists(uri):
        raise MissingError(f"{key}={uri}: no such folder")
    return storage.full_path(uri)
