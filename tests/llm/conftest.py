from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm.loading import load_llm
from llm.lora import add_lora
from llm.prompts import AFTER_AUDIO, BEFORE_AUDIO, PROMPTS
from llm.settings import LoraSettings
from llm.tiny import write_tiny_llm

WORDS = ("red", "blue", "green", "white", "black", "yellow", "brown", "pink")


@pytest.fixture(scope="session")
def tiny_llm_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-llm")
    write_tiny_llm([*WORDS, BEFORE_AUDIO, AFTER_AUDIO, *(text for texts in PROMPTS.values() for text in texts)], folder)
    return folder


@pytest.fixture
def tiny_llm(tiny_llm_dir: Path) -> PreTrainedModel:
    return load_llm(tiny_llm_dir)[0]


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_llm_dir: Path) -> PreTrainedTokenizerBase:
    return load_llm(tiny_llm_dir)[1]


@pytest.fixture
def adapted_llm(tiny_llm: PreTrainedModel) -> PeftModel:
    """With LoRA whose B is not zero, so that it matters."""
    model = add_lora(tiny_llm, LoraSettings(rank=4, alpha=8, dropout=0.0))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model
