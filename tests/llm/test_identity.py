import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llm.errors import LLMError
from llm.identity import differences, llm_identity


@pytest.fixture
def folder(tiny_llm_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_llm_dir, tmp_path / "llm")


def _negate(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[len(weights) // 2]
    save_file({**weights, name: -weights[name]}, folder / "model.safetensors")


def _rename_a_token(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"!"', '"!!"'))


def _widen(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))


@pytest.mark.parametrize(("change", "part"), [(_negate, "weights"), (_rename_a_token, "tokenizer"), (_widen, "config")])
def test_each_part_is_known(folder: Path, change: Callable[[Path], None], part: str) -> None:
    before = llm_identity(folder)
    assert before.keys() == {"weights", "tokenizer", "config"}
    change(folder)
    assert differences(before, llm_identity(folder)) == [part]


def test_the_same_model_is_known_elsewhere_and_cut_into_other_files(folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    shutil.copytree(folder, other := tmp_path / "other")
    (other / "model.safetensors").unlink()
    model.save_pretrained(other, max_shard_size="100KB")
    assert len(list(other.glob("*.safetensors"))) > 1
    assert differences(llm_identity(folder), llm_identity(other)) == []


def test_pytorchs_own_files_are_known_by_their_checksums(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    before = llm_identity(folder)
    torch.save(state, folder / "pytorch_model.bin")
    assert llm_identity(folder) == before
    torch.save({name: -tensor for name, tensor in state.items()}, folder / "pytorch_model.bin")
    assert differences(before, llm_identity(folder)) == ["weights"]


def test_files_of_another_kind_are_not_compared(folder: Path) -> None:
    before = llm_identity(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert differences(before, llm_identity(folder)) == []


def test_a_model_on_the_hub_that_is_not_here_has_its_name_alone() -> None:
    assert llm_identity("no-such-organisation/no-such-model") == {"name": "no-such-organisation/no-such-model"}
    assert differences({"name": "a/b"}, {"weights": "safetensors:1"}) == []


@pytest.mark.parametrize(
    "content", [None, b"", (2**40).to_bytes(8, "little"), (9).to_bytes(8, "little") + b"not json!"]
)
def test_what_cannot_be_read_is_refused_by_name(folder: Path, content: bytes | None) -> None:
    (folder / "model.safetensors").unlink()
    if content is not None:
        (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(LLMError, match=f"{folder}"):
        llm_identity(folder)
