"""Load any causal language model from a Hugging Face folder, frozen."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def load_llm(
    path: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model, frozen and in evaluation mode, and its tokenizer.

    Settings for generation that the folder may hold (sampling, temperature, …) are dropped: they are the caller's.

    Raises:
        ValueError: If the folder, its weights or its tokenizer is absent or cannot be read.
    """
    folder = _require_model(path)
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ValueError(f"{folder}: no tokenizer here, expected one of {', '.join(_TOKENIZER_FILES)}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with _no_progress_bar():
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, local_files_only=True, trust_remote_code=False
            )
    except (OSError, ImportError, ValueError) as error:
        raise ValueError(f"{folder}: cannot load the language model: {error}") from error
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{folder}: the tokenizer has no end-of-sequence token, which ends every answer")
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]  # the library's
    model.requires_grad_(False)
    return model.train(False).to(device), tokenizer


def llm_width(path: str | Path) -> int:
    """Return the width of a language model's embeddings, from its config alone.

    Raises:
        ValueError: If the folder is absent or its config cannot be read.
    """
    folder = _require_model(path)
    try:
        return int(
            AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            .get_text_config()
            .hidden_size
        )
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{folder}: cannot read the language model's config: {error}") from error


def _require_model(path: str | Path) -> Path:
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no language model here, expected a Hugging Face folder with a config.json")
    return folder


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # the library's
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # the library's
