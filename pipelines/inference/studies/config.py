"""The keys of `salmonn scaling` and `salmonn stories`."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from pipelines.errors import UserError
from pipelines.inference.config import AnsweringConfig
from pipelines.interface.config import require_range


@dataclass(frozen=True)
class ScalingConfig(AnsweringConfig):
    scalings: list[float] = field(default_factory=lambda: [0.0, 1.0, 2.0, 3.0, 4.0])
    """[alpha/rank] LoRA scalings to answer with, counted as in the paper: the published alpha 32 and rank 8 make 4,
    and 0 is the bare LLM. Each divided by the run's alpha/rank is the `lora_scaling` of evaluate."""
    out: str = ""
    """[URI] Folder for scaling.json and scaling.html; empty: scaling/<splits> in the run."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        if not self.scalings or len(set(self.scalings)) < len(self.scalings):
            raise UserError(f"scalings={self.scalings}: one or more are needed, each once")
        if not all(0 <= scaling < float("inf") for scaling in self.scalings):
            raise UserError(f"scalings={self.scalings}: each must be 0 or more")


@dataclass(frozen=True)
class StoriesConfig(AnsweringConfig):
    manifest: str = MISSING
    """[URI] Folder of the manifest that names the clips."""
    out: str = MISSING
    """[URI] Folder of the manifest of accepted stories; candidates.jsonl stands beside its tables."""
    append: bool = False
    """[true/false] Add to the manifest that is there, such as the one that names the clips."""
    splits: list[str] = field(default_factory=lambda: ["train"])
    """[names] Splits whose clips are written about; empty: all."""
    tasks: list[str] = field(default_factory=list)
    """[names] Only clips with examples of these tasks are written about; empty: all."""
    clips: int = 48
    """[count] Clips that are written about, a story each."""
    seed: int = 0
    """[number] Decides which clips those are, and what is drawn with `temperature`."""
    lora_scaling: float = 0.5
    """[factor] On LoRA's alpha/rank; at 1 a model gives the short answers that it was trained to give."""
    temperature: float = 0.0
    """[1] Above 0: words are drawn by chance, all the freer, and not searched for by `num_beams`."""
    top_p: float = 0.9
    """[probability] Drawn from the likeliest tokens that make up so much."""
    min_words: int = 50
    """[words] Shorter stories are not offered."""
    max_words: int = 300
    """[words] Longer stories are not offered: train learns `max_answer_tokens` of an answer."""
    min_distinct: float = 0.8
    """[fraction] Least share of a story's rows of three words that are no repetition."""
    accept: list[str] = field(default_factory=list)
    """[ids] Accept the stories about these clips without asking; the first digits of an id are enough."""
    accept_first: int = 0
    """[count] Accept so many of the offered stories without asking; stage 3 takes 12."""
    split: str = "train"
    """[name] Split that accepted stories belong to."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        require_range(self, ("clips", "min_words"), low=1)
        require_range(self, ("seed", "accept_first", "temperature"), low=0)
        require_range(self, ("max_words",), low=self.min_words)
        require_range(self, ("top_p", "min_distinct"), low=0, high=1)
        if self.accept and self.accept_first:
            raise UserError(f"accept={self.accept} and accept_first={self.accept_first}: give one of them")
