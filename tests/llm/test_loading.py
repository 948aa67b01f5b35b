"""Covers llm.settings."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from llm.loading import llm_width, load_llm
from llm.settings import Precision, is_hub_name
from tests import SHARED


def test_the_model_is_frozen_and_in_evaluation_mode(tiny_llm: PreTrainedModel) -> None:
    assert not tiny_llm.training
    assert not any(parameter.requires_grad for parameter in tiny_llm.parameters())


def test_weights_come_in_the_asked_precision(tiny_llm_dir: Path) -> None:
    model, _ = load_llm(tiny_llm_dir, precision="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(("precision", "stored"), [("int8", torch.int8), ("int4", torch.uint8)])
def test_quantised_weights_take_their_bits(tiny_llm_dir: Path, precision: Precision, stored: torch.dtype) -> None:
    pytest.importorskip("bitsandbytes")
    model, _ = load_llm(tiny_llm_dir, precision=precision)
    (full, _), ids = load_llm(tiny_llm_dir), torch.arange(3, 40).unsqueeze(0)
    matrix = model.get_parameter("model.layers.0.mlp.up_proj.weight")
    assert matrix.dtype == stored and model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert matrix.nbytes * 32 == int(precision.removeprefix("int")) * 128 * 256 * 4
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    expected = full(ids).logits
    assert (model(ids).logits - expected).norm() < 0.3 * expected.norm()


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantisation_without_its_package_names_the_extra(
    tiny_llm_dir: Path, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    with pytest.raises(ValueError, match=rf"precision={precision} needs bitsandbytes: pip install .*\[quantised\]"):
        load_llm(tiny_llm_dir, precision=precision)


def test_a_model_is_found_by_its_name_on_the_hub(
    tiny_llm_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the hub's own cache, as after a first download."""
    _disconnect(tmp_path, monkeypatch)
    folder = tmp_path / "models--some-lab--tiny-1.0"
    shutil.copytree(tiny_llm_dir, folder / "snapshots" / "0123")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123")
    model, tokenizer = load_llm("some-lab/tiny-1.0")
    expected, _ = load_llm(tiny_llm_dir)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    assert tokenizer.eos_token == "</s>" and llm_width("some-lab/tiny-1.0") == 128


def test_a_name_that_cannot_be_looked_up_is_an_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _disconnect(tmp_path, monkeypatch)
    with pytest.raises(ValueError, match="some-lab/absent: cannot load the language model: "):
        load_llm("some-lab/absent")
    with pytest.raises(ValueError, match="some-lab/absent: cannot read the language model's config: "):
        llm_width("some-lab/absent")


def test_names_and_paths_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert is_hub_name("lmsys/vicuna-13b-v1.1") and is_hub_name("Qwen/Qwen2.5-0.5B")
    for path in ("tiny", "models/mine", "./models/other", "../a/b", "/models/other", "~/models", "a/b/c", "a/", "/b"):
        assert not is_hub_name(path), path


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


def _disconnect(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the hub's client look in a cache of its own and nowhere else."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache_dir))


@pytest.mark.weights
def test_a_pretrained_story_teller_loads_and_tells() -> None:
    model, tokenizer = load_llm(SHARED / "data" / "weights" / "tinystories-260k-llama")
    ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
    told = tokenizer.decode(model.generate(ids, max_new_tokens=40, do_sample=False)[0], skip_special_tokens=True)
    assert "Once upon a time, there was" in told


@pytest.mark.weights
def test_a_sentencepiece_tokenizer_gives_the_official_ids() -> None:
    folder = SHARED / "golden" / "llama_small"
    _, tokenizer = load_llm(folder)
    for case in json.loads((folder / "tokenizer_expected.json").read_text())["texts"]:
        if not case["text"].startswith(" "):
            assert tokenizer(case["text"], add_special_tokens=False).input_ids == case["ids"], case["text"]
