"""Load any causal language model, frozen: from a Hugging Face folder, or by its name on the hub."""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from llm.errors import LLMError
from llm.settings import Precision, is_hub_name, require_precision

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def load_llm(
    path: str | Path, *, precision: Precision = "float32", device: str | torch.device = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model, frozen and in evaluation mode, and its tokenizer.

    On the device `meta` no weight is read: the model is then names and shapes alone. Settings for generation that the
    folder may hold (sampling, temperature, …) are dropped: they are the caller's.

    Args:
        path: A Hugging Face folder, or a name on the hub such as lmsys/vicuna-13b-v1.1.
        precision: Of the weights. int8 (LLM.int8()) and int4 (QLoRA's NF4) hold the linear layers' matrices in so many
            bits, the rest in bfloat16.
        device: Where to load it.

    Raises:
        LLMError: If the model or its tokenizer is absent or cannot be read, or bitsandbytes is needed and absent.
    """
    source, dtype = _source(path), torch.float32 if precision == "float32" else torch.bfloat16
    if source["local_files_only"] and not any((Path(path) / name).is_file() for name in _TOKENIZER_FILES):
        raise LLMError(f"{path}: no tokenizer here, expected one of {', '.join(_TOKENIZER_FILES)}")
    quantisation = _quantisation(precision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        if torch.device(device).type == "meta":
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(**source), dtype=dtype)  # type: ignore[no-untyped-call]  # the library's
        else:
            with _no_progress_bar():
                model = AutoModelForCausalLM.from_pretrained(
                    **source, dtype=dtype, device_map={"": device}, quantization_config=quantisation
                )
            if precision == "int4":
                _keep_differentiable(model)
    except (OSError, ImportError, ValueError) as error:
        raise LLMError(f"{path}: cannot load the language model: {error}") from error
    if tokenizer.eos_token_id is None:
        raise LLMError(f"{path}: the tokenizer has no end-of-sequence token, which ends every answer")
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]  # the library's
    model.requires_grad_(False)
    return model.train(False), tokenizer


def share_llm(llm: PreTrainedModel) -> PreTrainedModel:
    """Return a model with modules of its own over the weights of this one, which must be frozen and bare.

    LoRA, hooks and modes of the one do not concern the other. It takes no memory but for its modules' objects.
    """
    shared: list[Any] = [*llm.parameters(), *llm.buffers()]
    for module in llm.modules():
        if hasattr(module, "init_8bit_state"):  # bitsandbytes' LLM.int8() keeps a weight's scales elsewhere
            if module.weight.CB is not None:  # type: ignore[union-attr]  # the library's
                module.init_8bit_state()  # type: ignore[operator]  # it takes them from the weight at the first use
            shared.append(module.state)
    twin: PreTrainedModel = copy.deepcopy(llm, {id(one): one for one in shared})
    return twin


def llm_width(path: str | Path) -> int:
    """Return the width of a language model's embeddings, from its config alone.

    Raises:
        LLMError: If the model is absent or its config cannot be read.
    """
    source = _source(path)
    try:
        return int(AutoConfig.from_pretrained(**source).get_text_config().hidden_size)
    except (OSError, ValueError, AttributeError) as error:
        raise LLMError(f"{path}: cannot read the language model's config: {error}") from error


def _source(path: str | Path) -> dict[str, Any]:
    """Return `from_pretrained`'s arguments for a folder, of which nothing is asked elsewhere, or for a name."""
    if not is_hub_name(path) and not (Path(path) / "config.json").is_file():
        raise LLMError(
            f"{path}: no language model here, expected a Hugging Face folder with a config.json, or organisation/model"
        )
    return {
        "pretrained_model_name_or_path": str(path),
        "local_files_only": not is_hub_name(path),
        "trust_remote_code": False,
    }


def _quantisation(precision: Precision) -> BitsAndBytesConfig | None:
    require_precision(precision)
    if precision not in ("int8", "int4"):
        return None
    # It would say at every product that it computes in float16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if precision == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]  # the library's
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]  # the library's
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _keep_differentiable(model: PreTrainedModel) -> None:
    """Forbid the layout that bitsandbytes chooses on CPUs with AVX512-BF16 at the first product without gradients.

    No gradient passes it, and no error says so: the layers below would not learn.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]  # the library's switch


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # the library's
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # the library's
