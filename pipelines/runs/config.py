"""The keys of the verbs that look at runs, compare recipes, and convert official checkpoints."""

from dataclasses import dataclass, field
from typing import Literal

from omegaconf import MISSING

from encoders.features import Codec, Kernel
from llm.settings import Precision
from pipelines import storage
from pipelines.errors import UserError
from pipelines.interface.config import require_range
from pipelines.interface.words import command
from pipelines.runs.folder import newest_step
from pipelines.runs.spec import RunSpec


@dataclass(frozen=True)
class ImportConfig:
    ckpt: str = MISSING
    """[URI] The official checkpoint, a release (salmonn_v1.pth) or one that the official trainer wrote."""
    llm: str = MISSING
    """[path|name] Hugging Face folder of the language model it was trained on, or its name on the hub."""
    whisper: str = MISSING
    """[path|tiny] Hugging Face folder of the Whisper model it was trained on."""
    beats: str = MISSING
    """[path|tiny|none] The BEATs checkpoint (.pt) it was trained on; none: it hears speech alone."""
    out: str = MISSING
    """[URI] Folder of the run to make."""
    codec: Codec = "float16"
    """[name] How the features it is to hear are stored, as in extract."""
    encoder_precision: Literal["float32", "bfloat16"] = "float32"
    """[dtype] What the encoders compute in: extract's precision."""
    attention: Kernel = "sdpa"
    """[name] Attention of BEATs, as in extract."""
    precision: Precision = "float32"
    """[dtype] The frozen LLM's weights, as in train."""
    num_heads: int = 12
    """[count] Attention heads of the Q-Former, which its tensors do not tell."""
    window_seconds: float = 0.0
    """[seconds] Audio covered by one window; 0: what the config in the checkpoint says, or 0.333333."""
    stride_seconds: float = 0.0
    """[seconds] From the start of one window to the start of the next; 0: likewise."""
    lora_alpha: int = 0
    """[factor] LoRA updates are scaled by alpha / rank; 0: what the config in the checkpoint says, or 32."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require_range(self, ("num_heads",), low=1)
        require_range(self, ("window_seconds", "stride_seconds", "lora_alpha"), low=0)

    def require_paths(self) -> None:
        """Check that what is read is there."""
        storage.open_file(self.ckpt).close()

    def next_step(self) -> str:
        """Return the command that goes on from here."""
        return command("ask", run=self.out, audio="RECORDING", question="What can be heard?")


@dataclass(frozen=True)
class ExportConfig:
    run: str = MISSING
    """[URI] Run folder whose newest checkpoint is exported."""
    out: str = MISSING
    """[URI] The official checkpoint (.pth) to write."""

    def require_paths(self) -> None:
        """Check that what is read is there."""
        RunSpec.read(self.run)
        newest_step(self.run)


@dataclass(frozen=True)
class RunsListConfig:
    runs: str = MISSING
    """[URI] Folder whose folders are runs."""


@dataclass(frozen=True)
class RunsReportConfig:
    run: str = MISSING
    """[URI] Folder of the run."""

    def require_paths(self) -> None:
        """Check that what is read is there."""
        RunSpec.read(self.run)


@dataclass(frozen=True)
class RunsDeleteConfig:
    run: str = MISSING
    """[URI] Folder of the run to remove, with its checkpoints, its evaluations and whatever else is in it."""
    yes: bool = False
    """[true/false] Remove it; otherwise it is only said what would go."""


@dataclass(frozen=True)
class RunsPruneConfig:
    run: str = MISSING
    """[URI] Folder of the run."""
    keep: str = "best,last"
    """[best,last|count] Which checkpoints stay; a count: so many of the newest, and the best. Those that an evaluation
    scored, or that a run in the same folder started from, stay too."""
    dry_run: bool = False
    """[true/false] Only say what would be removed."""

    def __post_init__(self) -> None:
        """Check what stays."""
        if self.keep not in ("best,last", "last,best") and not (self.keep.isdecimal() and int(self.keep)):
            raise UserError(f"keep={self.keep}: must be best,last, or how many of the newest")

    @property
    def newest(self) -> int:
        """How many of the newest stay."""
        return int(self.keep) if self.keep.isdecimal() else 1


@dataclass(frozen=True)
class RunsCompareConfig:
    runs: list[str] = field(default_factory=list)
    """[URIs] Folders of two runs or more."""
    out: str = ""
    """[URI] HTML page to write, with the curves; empty: none."""


@dataclass(frozen=True)
class RecipeDiffConfig:
    a: str = MISSING
    """[URI] Folder of a feature cache or of a run."""
    b: str = MISSING
    """[URI] Folder of another one."""
