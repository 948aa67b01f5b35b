"""What a user may choose about the language model; without PyTorch, for those who only check it."""

import importlib.util
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from llm.errors import LLMError

Precision = Literal["float32", "bfloat16", "int8", "int4"]


def is_hub_name(path: str | Path) -> bool:
    """Tell a name on the hub, organisation/model, from a path."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(path)) is not None and not Path(path).exists()


def require_precision(precision: Precision) -> None:
    """Check that what a precision needs is installed.

    Raises:
        LLMError: Naming the extra to install.
    """
    if precision in ("int8", "int4") and importlib.util.find_spec("bitsandbytes") is None:
        raise LLMError(f"precision={precision} needs bitsandbytes: pip install 'salmonn-pipeline[quantised]'")


@dataclass(frozen=True)
class LoraSettings:
    rank: int = 8
    """[count] Rank of each update B·A."""
    alpha: int = 32
    """[factor] Updates are scaled by alpha / rank: 4.0 for SALMONN."""
    dropout: float = 0.1
    """[probability] Dropout on the input of A while training."""
    target_modules: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])
    """[names] Linear modules of the LLM that get an update."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise LLMError(f"rank {self.rank} must be at least 1")
        if not 0 <= self.dropout < 1:
            raise LLMError(f"dropout {self.dropout} must be in [0, 1)")
        if not self.target_modules:
            raise LLMError("target_modules is empty, so LoRA would change nothing")
