from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qformer.aligner import Aligner
from qformer.config import AlignerConfig
from qformer.official import config_from_official, load_official, to_official
from tests import SHARED

GOLDEN = SHARED / "golden" / "salmonn_small"
CONFIG = AlignerConfig(speech_width=64, audio_width=96, llm_width=64, hidden_width=96, num_heads=4, ffn_width=384)


@pytest.mark.weights
@pytest.mark.parametrize("name", ["salmonn_small.pth", "salmonn_small_trainer.pth"])
def test_official_checkpoints_load_and_are_written_back_exactly(name: str) -> None:
    model = torch.load(GOLDEN / name, weights_only=True)["model"]
    aligner = Aligner(CONFIG)
    load_official(aligner, model)
    released = {key: tensor for key, tensor in load_file(GOLDEN / "trainable.safetensors").items() if "lora" not in key}
    written = to_official(aligner)
    assert written.keys() == released.keys()
    assert all(torch.equal(written[key], released[key]) for key in released)


def test_round_trip_keeps_every_tensor() -> None:
    source, target = Aligner(CONFIG), Aligner(CONFIG)
    load_official(target, to_official(source))
    for (name, ours), theirs in zip(source.state_dict().items(), target.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("sizes", [{}, {"num_queries": 4, "num_layers": 3, "ffn_width": 80}, {"audio_width": None}])
def test_sizes_are_read_off_the_tensors(sizes: dict[str, Any]) -> None:
    config = replace(CONFIG, window_seconds=0.5, stride_seconds=0.25, **sizes)
    model = to_official(Aligner(config))
    assert config_from_official(model, num_heads=4, window_seconds=0.5, stride_seconds=0.25) == config


def test_tensors_become_the_weights_themselves_where_they_are_assigned() -> None:
    model = {name: tensor.half() for name, tensor in to_official(Aligner(CONFIG)).items()}
    with torch.device("meta"):
        aligner = Aligner(CONFIG)
    load_official(aligner, model, assign=True)
    written = to_official(aligner)
    assert all(written[name].data_ptr() == tensor.data_ptr() for name, tensor in model.items())


@pytest.mark.parametrize("name", ["beats.encoder.layers.0.fc1.weight", "speech_encoder.conv1.weight"])
def test_weights_of_encoders_that_were_not_frozen_are_not_overlooked(name: str) -> None:
    model = to_official(Aligner(CONFIG)) | {name: torch.zeros(1)}
    with pytest.raises(ValueError, match=f"{name} is left over"):
        load_official(Aligner(CONFIG), model)


def test_other_parts_of_a_checkpoint_are_left_alone() -> None:
    model = to_official(Aligner(CONFIG))
    model["llama_model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"] = torch.zeros(1)
    model["speech_Qformer.bert.embeddings.position_ids"] = torch.zeros(1)
    model["beats.encoder.layers.1.self_attn.relative_attention_bias.weight"] = torch.zeros(1)
    aligner = Aligner(CONFIG)
    load_official(aligner, model)
    written = to_official(aligner)
    assert len(model) == len(written) + 3 and all(torch.equal(model[name], tensor) for name, tensor in written.items())


def test_what_does_not_fit_is_named_and_nothing_is_loaded() -> None:
    model = {name: torch.ones_like(tensor) for name, tensor in to_official(Aligner(CONFIG)).items()}
    del model["ln_audio.bias"]
    model["speech_Qformer.bert.encoder.layer.2.attention.self.key.bias"] = torch.zeros(96)
    model["speech_llama_proj.bias"] = torch.zeros(5)
    aligner = Aligner(CONFIG)
    with pytest.raises(ValueError, match="does not fit") as caught:
        load_official(aligner, model)
    for words in (
        "ln_audio.bias is missing",
        "layer.2.attention.self.key.bias is left over",
        "speech_llama_proj.bias is [5] there and [64] here",
    ):
        assert words in str(caught.value)
    assert not torch.equal(aligner.qformer.query_tokens, torch.ones_like(aligner.qformer.query_tokens))
