"""What is used of PEFT, without bitsandbytes wherever no LLM in 8 or 4 bits is loaded.

PEFT imports bitsandbytes where it is installed, at its own import and again when it adds LoRA, and PyTorch's compiler
with it: 2 of the 8 seconds that a process spent before its first step. A quantised LLM, which needs it, loads it first.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def bitsandbytes_absent() -> Iterator[None]:
    """Let bitsandbytes seem not to be installed in the block, unless it is loaded already."""
    if "bitsandbytes" in sys.modules:
        yield
        return
    _forget_what_is_installed()
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # how Python marks a module that cannot be imported
    try:
        yield
    finally:
        del sys.modules["bitsandbytes"]
        _forget_what_is_installed()


def _forget_what_is_installed() -> None:
    """Empty the caches in which PEFT keeps whether bitsandbytes is there."""
    if peft := sys.modules.get("peft.import_utils"):
        peft.is_bnb_available.cache_clear()
        peft.is_bnb_4bit_available.cache_clear()


with bitsandbytes_absent():
    from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
    from peft.tuners.lora import LoraLayer

__all__ = [
    "LoraConfig",
    "LoraLayer",
    "PeftConfig",
    "PeftModel",
    "bitsandbytes_absent",
    "get_peft_model",
    "get_peft_model_state_dict",
]
