"""The keys of the `salmonn manifest` verbs."""

from dataclasses import dataclass
from pathlib import PurePosixPath

from omegaconf import MISSING

from pipelines.errors import UserError
from pipelines.interface.config import require_range


@dataclass(frozen=True)
class ManifestInfoConfig:
    manifest: str = MISSING
    """[URI] Folder of the manifest."""
    json: bool = False
    """[true/false] Print JSON instead of a table."""


@dataclass(frozen=True)
class ManifestCheckConfig:
    manifest: str = MISSING
    """[URI] Folder of the manifest."""
    fraction: float = 1.0
    """[fraction] Share of the recordings that are looked for, always the same ones; 0: none."""
    threads: int = 16
    """[count] Recordings looked for at a time."""
    listed: int = 5
    """[count] Faults of each kind that are listed; all are counted."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require_range(self, ("fraction",), low=0, high=1)
        require_range(self, ("threads",), low=1)
        require_range(self, ("listed",), low=0)


@dataclass(frozen=True)
class ManifestPlotConfig:
    manifest: str = MISSING
    """[URI] Folder of the manifest."""
    out: str = MISSING
    """[URI] The picture: .png or .svg; or .html, a page with the numbers too."""

    def __post_init__(self) -> None:
        """Check the picture's ending."""
        if self.suffix not in ("png", "svg", "html"):
            raise UserError(f"out={self.out}: must end in .png, .svg or .html")

    @property
    def suffix(self) -> str:
        """The picture's ending, without the dot."""
        return PurePosixPath(self.out.partition("?")[0]).suffix.removeprefix(".")


@dataclass(frozen=True)
class ManifestSampleConfig:
    manifest: str = MISSING
    """[URI] Folder of the manifest."""
    corpus: str = ""
    """[name] Only examples of this corpus; empty: all."""
    split: str = ""
    """[name] Only examples of this split; empty: all."""
    task: str = ""
    """[name] Only examples of this task; empty: all."""
    n: int = 5
    """[count] Examples shown."""
    seed: int = 0
    """[number] Chooses the examples; the same one gives the same."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require_range(self, ("n",), low=1)
        require_range(self, ("seed",), low=0)
