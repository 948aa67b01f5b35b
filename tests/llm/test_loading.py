import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from llm.loading import load_llm

SHARED = Path(__file__).parents[2] / ".." / "shared"


def test_the_model_is_frozen_and_in_evaluation_mode(tiny_llm: PreTrainedModel) -> None:
    assert not tiny_llm.training
    assert not any(parameter.requires_grad for parameter in tiny_llm.parameters())


def test_weights_come_in_the_asked_precision(tiny_llm_dir: Path) -> None:
    model, _ = load_llm(tiny_llm_dir, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_generation_settings_of_the_folder_are_not_used(tiny_llm_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llm_dir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.9, "top_k": 7}))
    generation = load_llm(tmp_path)[0].generation_config
    assert generation.temperature is None and generation.top_k is None and not generation.do_sample


def test_an_absent_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: no language model here"):
        load_llm(tmp_path / "nowhere")


def test_a_folder_without_a_tokenizer_is_named(tiny_llm_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llm_dir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="no tokenizer here"):
        load_llm(tmp_path)


def test_a_folder_without_weights_is_named(tiny_llm_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llm_dir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"{tmp_path.name}: cannot load the language model"):
        load_llm(tmp_path)


@pytest.mark.weights
@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is absent")
def test_a_pretrained_story_teller_loads_and_tells() -> None:
    model, tokenizer = load_llm(SHARED / "data" / "weights" / "tinystories-260k-llama")
    ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
    told = tokenizer.decode(model.generate(ids, max_new_tokens=40, do_sample=False)[0], skip_special_tokens=True)
    assert "Once upon a time, there was" in told


@pytest.mark.weights
@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is absent")
def test_a_sentencepiece_tokenizer_gives_the_official_ids() -> None:
    folder = SHARED / "golden" / "llama_small"
    _, tokenizer = load_llm(folder)
    for case in json.loads((folder / "tokenizer_expected.json").read_text())["texts"]:
        if not case["text"].startswith(" "):
            assert tokenizer(case["text"], add_special_tokens=False).input_ids == case["ids"], case["text"]
