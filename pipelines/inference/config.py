"""The keys of `salmonn evaluate` and `salmonn ask`."""

from dataclasses import dataclass, field
from typing import Literal

from omegaconf import MISSING

from pipelines import storage
from pipelines.cache.recipe import read_recipe
from pipelines.interface.config import require_range
from pipelines.runs.folder import find_checkpoint
from pipelines.runs.spec import RunSpec


@dataclass(frozen=True)
class EvaluateConfig:
    run: str = MISSING
    """[URI] Run folder whose newest checkpoint answers."""
    manifest: str = MISSING
    """[URI] Folder of the manifest that holds the held-out examples."""
    cache: str = MISSING
    """[URI] Folder of the feature cache that holds their clips."""
    checkpoint: str = "last"
    """[last|best|step] Which of the run's checkpoints answers; best: of the lowest held-out loss."""
    splits: list[str] = field(default_factory=lambda: ["test"])
    """[names] Splits to answer; empty: all."""
    tasks: list[str] = field(default_factory=list)
    """[names] Tasks to answer; empty: all."""
    out: str = ""
    """[URI] Folder for metrics and predictions; empty: evaluation/<splits> in the run."""
    batch_examples: int = 16
    """[examples] Decoded together."""
    num_beams: int = 4
    """[count] Beams of the search; 1: greedy."""
    max_new_tokens: int = 200
    """[tokens] Longest answer."""
    lora_scaling: float = 1.0
    """[factor] On LoRA's alpha/rank."""
    threads: int = 2
    """[count] CPU threads."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """[name] Where the model runs."""
    max_missing_fraction: float = 0.05
    """[fraction] Share of the examples whose clips the cache may lack."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require_range(self, ("batch_examples", "num_beams", "max_new_tokens", "threads"), low=1)
        require_range(self, ("max_missing_fraction",), low=0, high=1)

    def require_paths(self) -> None:
        """Check that what is read is there."""
        RunSpec.read(self.run)
        find_checkpoint(self.run, self.checkpoint)
        read_recipe(self.cache)


@dataclass(frozen=True)
class AskConfig:
    run: str = MISSING
    """[URI] Run folder."""
    checkpoint: str = "last"
    """[last|best|step] Which of its checkpoints answers; best: of the lowest held-out loss."""
    audio: str = MISSING
    """[URI] The recording; its first 30 seconds are heard."""
    question: str = MISSING
    """[text] What is asked about it."""
    whisper: str = ""
    """[path|tiny] The Whisper encoder, if it has moved since extraction; its weights must be the same."""
    beats: str = ""
    """[path|tiny|none] The BEATs encoder, likewise."""
    num_beams: int = 4
    """[count] Beams of the search; 1: greedy."""
    max_new_tokens: int = 200
    """[tokens] Longest answer."""
    lora_scaling: float = 1.0
    """[factor] On LoRA's alpha/rank."""
    threads: int = 2
    """[count] CPU threads."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """[name] Where encoders and model run."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require_range(self, ("num_beams", "max_new_tokens", "threads"), low=1)

    def require_paths(self) -> None:
        """Check that what is read is there."""
        storage.open_file(self.audio).close()
        RunSpec.read(self.run)
        find_checkpoint(self.run, self.checkpoint)
