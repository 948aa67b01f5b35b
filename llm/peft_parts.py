"""What is used of PEFT, imported without bitsandbytes.

PEFT imports bitsandbytes wherever it is installed, and PyTorch's compiler with it: 2 of the 8 seconds that a process
spends before its first step. Only an LLM in 8 or 4 bits needs it, and imports it itself.
"""

import sys

_IS_LOADED = "bitsandbytes" in sys.modules
if not _IS_LOADED:
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # how Python marks a module that cannot be imported
try:
    from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
    from peft.tuners.lora import LoraLayer
finally:
    if not _IS_LOADED:
        del sys.modules["bitsandbytes"]

__all__ = ["LoraConfig", "LoraLayer", "PeftConfig", "PeftModel", "get_peft_model", "get_peft_model_state_dict"]
