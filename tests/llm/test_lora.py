"""Covers llm.peft_parts."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from llm.loading import load_llm, share_llm
from llm.lora import (
    adapter_from_official,
    adapter_state_dict,
    adapter_to_official,
    add_lora,
    load_adapter,
    load_adapter_state,
    save_adapter,
    set_lora_scaling,
    settings_from_official,
    use_lora,
)
from llm.settings import LoraSettings, Precision
from tests import SHARED

GOLDEN = SHARED / "golden" / "salmonn_small"
IDS = torch.arange(3, 23).unsqueeze(0)
LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


def test_a_new_adapter_changes_nothing(tiny_llm: PreTrainedModel) -> None:
    before = tiny_llm(IDS).logits
    assert torch.equal(add_lora(tiny_llm, LoraSettings()).eval()(IDS).logits, before)


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 3.0])
def test_the_update_is_factor_times_alpha_over_rank_times_ba(adapted_llm: PeftModel, factor: float) -> None:
    layer = adapted_llm.get_submodule(LAYER)
    x = torch.randn(5, 128)
    lora_a, lora_b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    set_lora_scaling(adapted_llm.eval(), factor)
    expected = x @ layer.base_layer.weight.T + factor * (8 / 4) * x @ lora_a.T @ lora_b.T
    torch.testing.assert_close(layer(x), expected)


def test_scaling_can_be_changed_back_and_forth(adapted_llm: PeftModel) -> None:
    adapted_llm.eval()
    as_trained, weights = adapted_llm(IDS).logits, _copy(adapter_state_dict(adapted_llm))
    with adapted_llm.disable_adapter():
        bare = adapted_llm(IDS).logits
    set_lora_scaling(adapted_llm, 0.0)
    assert torch.equal(adapted_llm(IDS).logits, bare)
    set_lora_scaling(adapted_llm, 1.0)
    assert torch.equal(adapted_llm(IDS).logits, as_trained)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in adapter_state_dict(adapted_llm).items())


def test_lora_is_float32_over_a_bfloat16_base(tiny_llm_dir: Path) -> None:
    model = add_lora(load_llm(tiny_llm_dir, precision="bfloat16")[0], LoraSettings())
    dtypes = {("lora" in name, parameter.dtype) for name, parameter in model.named_parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    assert model(IDS).logits.dtype == torch.bfloat16


def test_adapters_of_one_llm_take_turns_and_none_touches_the_others(adapted_llm: PeftModel, tmp_path: Path) -> None:
    """The second has another rank and other modules, and is loaded from a folder."""
    adapted_llm.eval()
    first = adapted_llm(IDS).logits
    save_adapter(adapted_llm, tmp_path, base="base")
    add_lora(adapted_llm, LoraSettings(rank=2, alpha=8, target_modules=["o_proj"]), adapter="second").eval()
    assert torch.equal(adapted_llm(IDS).logits, first)
    use_lora(adapted_llm, "second")
    bare = adapted_llm(IDS).logits
    state = {
        name: torch.full_like(tensor, 0.05)
        for name, tensor in adapter_state_dict(adapted_llm, adapter="second").items()
    }
    load_adapter_state(adapted_llm, state, adapter="second")
    second = adapted_llm(IDS).logits
    assert not torch.equal(second, bare) and not torch.equal(second, first)
    add_lora(adapted_llm, LoraSettings(rank=4, alpha=8), adapter="copy").eval()
    load_adapter(adapted_llm, tmp_path, adapter="copy")
    for adapter, expected in (("default", first), ("second", second), ("copy", first), ("default", first)):
        use_lora(adapted_llm, adapter)
        torch.testing.assert_close(adapted_llm(IDS).logits, expected)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "int4"])
def test_llms_that_share_weights_have_adapters_and_modes_of_their_own(tiny_llm_dir: Path, precision: Precision) -> None:
    if precision.startswith("int"):
        pytest.importorskip("bitsandbytes")

    def adapted(llm: PreTrainedModel, seed: int) -> PeftModel:
        model = add_lora(llm, LoraSettings(rank=2 + seed)).eval()
        torch.manual_seed(seed)
        for tensor in adapter_state_dict(model).values():
            torch.nn.init.normal_(tensor)
        return model

    llm, _ = load_llm(tiny_llm_dir, precision=precision)
    names, weights = list(llm.state_dict()), {tensor.data_ptr() for tensor in llm.parameters()}
    first, second = (adapted(share_llm(llm), seed) for seed in (0, 1))
    first.train()
    first.activation_checkpointing_enable()
    first(IDS, labels=IDS).loss.backward()
    first.eval()
    for seed, model in enumerate((first, second)):
        alone = adapted(load_llm(tiny_llm_dir, precision=precision)[0], seed)
        assert torch.equal(model(IDS).logits, alone(IDS).logits)
        assert weights >= {tensor.data_ptr() for name, tensor in model.named_parameters() if "lora" not in name}, (
            "a weight was copied"
        )
    assert not second.get_base_model().is_activation_checkpointing and list(llm.state_dict()) == names
    assert not share_llm(llm).get_input_embeddings()(IDS).requires_grad
    assert torch.equal(share_llm(llm)(IDS).logits, load_llm(tiny_llm_dir, precision=precision)[0](IDS).logits)


def test_a_saved_adapter_loads_here_and_with_peft_itself(
    adapted_llm: PeftModel, tiny_llm_dir: Path, tmp_path: Path
) -> None:
    save_adapter(adapted_llm, tmp_path, base="some-lab/base")
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    expected = adapted_llm.eval()(IDS).logits
    ours = add_lora(load_llm(tiny_llm_dir)[0], LoraSettings(rank=4, alpha=8, dropout=0.3)).eval()
    load_adapter(ours, tmp_path)
    assert torch.equal(ours(IDS).logits, expected)
    theirs = PeftModel.from_pretrained(load_llm(tiny_llm_dir)[0], tmp_path).eval()
    assert torch.equal(theirs(IDS).logits, expected)


def test_a_saved_adapter_names_its_base_and_no_folder_of_this_machine(adapted_llm: PeftModel, tmp_path: Path) -> None:
    save_adapter(adapted_llm, tmp_path, base="some-lab/base")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == ("some-lab/base")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (LoraSettings(rank=2, alpha=8), "rank is 4 there and 2 here"),
        (LoraSettings(rank=4, alpha=16), "alpha is 8 there and 16 here"),
        (LoraSettings(rank=4, alpha=8, target_modules=["q_proj"]), "target_modules is .*v_proj.* there"),
    ],
)
def test_an_adapter_of_other_settings_is_refused(
    adapted_llm: PeftModel, tiny_llm_dir: Path, tmp_path: Path, other: LoraSettings, words: str
) -> None:
    save_adapter(adapted_llm, tmp_path, base="some-lab/base")
    with pytest.raises(ValueError, match=words):
        load_adapter(add_lora(load_llm(tiny_llm_dir)[0], other), tmp_path)


def test_weights_that_do_not_fit_are_named_and_nothing_is_loaded(adapted_llm: PeftModel) -> None:
    before = _copy(adapter_state_dict(adapted_llm))
    state = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
    state[f"{LAYER}.lora_A.weight"] = torch.zeros(1, 1)
    state["extra"] = state.pop(f"{LAYER}.lora_B.weight")
    with pytest.raises(
        ValueError,
        match=r"lora_A.weight is \[1, 1\] there and \[4, 128\] here.*lora_B.weight is missing; extra is left",
    ):
        load_adapter_state(adapted_llm, state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter_state_dict(adapted_llm).items())


def test_a_folder_without_an_adapter_is_named(adapted_llm: PeftModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no adapter here, adapter_config.json is missing"):
        load_adapter(adapted_llm, tmp_path)


def test_modules_that_the_llm_lacks_are_an_error(tiny_llm: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="query_key_value"):
        add_lora(tiny_llm, LoraSettings(target_modules=["query_key_value"]))


@pytest.mark.parametrize(("field", "value"), [("rank", 0), ("dropout", 1.0), ("target_modules", [])])
def test_impossible_settings_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(LoraSettings(), **{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("spelling", [".default.weight", ".weight"])
def test_official_names_are_read_in_both_spellings(adapted_llm: PeftModel, spelling: str) -> None:
    state = adapter_state_dict(adapted_llm)
    official = adapter_to_official(state)
    assert f"llama_model.{LAYER}.lora_A.default.weight" in official
    renamed = {name.replace(".default.weight", spelling): tensor for name, tensor in official.items()}
    renamed["llama_model.base_model.model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    renamed["speech_query_tokens"] = torch.zeros(1)
    assert adapter_from_official(renamed).keys() == state.keys()


def test_rank_and_modules_are_read_off_official_tensors(adapted_llm: PeftModel) -> None:
    official = adapter_to_official(adapter_state_dict(adapted_llm))
    assert settings_from_official(official, alpha=8) == LoraSettings(rank=4, alpha=8)
    with pytest.raises(ValueError, match="holds no LoRA weights"):
        settings_from_official({"speech_query_tokens": torch.zeros(1)}, alpha=8)


def test_tensors_become_the_weights_themselves_where_they_are_assigned(tiny_llm_dir: Path) -> None:
    model = add_lora(load_llm(tiny_llm_dir, device="meta")[0], LoraSettings())
    state = {name: torch.ones(tensor.shape).half() for name, tensor in adapter_state_dict(model).items()}
    load_adapter_state(model, state, assign=True)
    assert all(tensor.data_ptr() == state[name].data_ptr() for name, tensor in adapter_state_dict(model).items())


@pytest.mark.weights
@pytest.mark.parametrize("name", ["salmonn_small.pth", "salmonn_small_trainer.pth"])
def test_official_checkpoints_adapter_round_trip(name: str) -> None:
    model = torch.load(GOLDEN / name, weights_only=True)["model"]
    written = adapter_to_official(adapter_from_official(model))
    released = {key: tensor for key, tensor in model.items() if "lora_" in key}
    assert written.keys() == released.keys()
    assert all(torch.equal(written[key], released[key]) for key in released)


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}
