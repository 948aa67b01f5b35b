"""Covers encoders.beats.network."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from encoders.beats.encoder import BeatsEncoder
from encoders.beats.network import SWITCHES, BeatsConfig, PositionConv, relative_bucket, relative_position_bias
from encoders.tiny import tiny_beats
from tests import SHARED

GOLDEN = SHARED / "golden"
TABLE = "encoder.layers.{}.self_attn.relative_attention_bias.weight"

TINY = BeatsConfig(
    embed_dim=64,
    encoder_layers=2,
    encoder_embed_dim=96,
    encoder_ffn_embed_dim=192,
    encoder_attention_heads=4,
    conv_pos=16,
    conv_pos_groups=4,
)


def waves(*seconds: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(round(16_000 * length), generator=generator) for length in seconds]


def released(**changes: Any) -> dict[str, Any]:
    """Return a checkpoint in the released layout, classifier and repeated tables included."""
    model = {name: tensor.clone() for name, tensor in tiny_beats().network.state_dict().items()}
    model |= {TABLE.format(1): model[TABLE.format(0)].clone(), "predictor.weight": torch.zeros(527, 96)}
    return {"cfg": asdict(TINY) | SWITCHES | {"finetuned_model": True} | changes, "model": model}


def load(tmp_path: Path, checkpoint: object) -> BeatsEncoder:
    torch.save(checkpoint, tmp_path / "beats.pt")
    return BeatsEncoder.from_checkpoint(tmp_path / "beats.pt")


def by_the_formulas(state: dict[str, Tensor], bank: Tensor, config: BeatsConfig) -> Tensor:
    """Compute BEATs for one clip from its description, plainly and in float64."""
    state = {name: tensor.double() for name, tensor in state.items()}
    heads = config.encoder_attention_heads

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    patches = functional.conv2d(bank.double()[None, None], state["patch_embedding.weight"], stride=16)[0]
    x = linear(norm(patches.flatten(1).T, "layer_norm"), "post_extract_proj")
    v = state["encoder.pos_conv.0.weight_v"]
    weight = torch.stack(
        [state["encoder.pos_conv.0.weight_g"][0, 0, k] * v[:, :, k] / v[:, :, k].norm() for k in range(v.shape[2])], -1
    )
    padded = functional.pad(x.T, (config.conv_pos // 2, config.conv_pos // 2 - 1))
    convolved = functional.conv1d(padded, weight, state["encoder.pos_conv.0.bias"], groups=config.conv_pos_groups)
    x = norm(x + functional.gelu(convolved).T, "encoder.layer_norm")
    alpha = (2 * config.encoder_layers) ** 0.25
    table = state[TABLE.format(0)]
    offset = torch.arange(len(x))[None] - torch.arange(len(x))[:, None]
    for number in range(config.encoder_layers):
        layer = f"encoder.layers.{number}"
        q, k, v = (linear(x, f"{layer}.self_attn.{name}_proj").chunk(heads, dim=1) for name in "qkv")
        outs = []
        for head in range(heads):
            u = linear(q[head], f"{layer}.self_attn.grep_linear")
            r1, r2 = u[:, :4].sum(1).sigmoid(), u[:, 4:].sum(1).sigmoid()
            gate = r1 * (r2 * state[f"{layer}.self_attn.grep_a"][0, head, 0, 0] - 1) + 2
            bias = table[relative_bucket(offset, config.num_buckets, config.max_distance), head]
            logits = q[head] @ k[head].T / math.sqrt(q[head].shape[1]) + gate[:, None] * bias
            outs.append(logits.softmax(-1) @ v[head])
        attended = linear(torch.cat(outs, dim=1), f"{layer}.self_attn.out_proj")
        x = norm(alpha * x + attended, f"{layer}.self_attn_layer_norm")
        hidden = linear(functional.gelu(linear(x, f"{layer}.fc1")), f"{layer}.fc2")
        x = norm(alpha * x + hidden, f"{layer}.final_layer_norm")
    return x


def test_frames_follow_the_formulas() -> None:
    generator = torch.Generator().manual_seed(1)
    state = tiny_beats().network.state_dict()  # with the neutral parameters moved, so that each counts
    state = {name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in state.items()}
    encoder = BeatsEncoder(TINY, state)
    (wave,) = waves(1.5)
    expected = by_the_formulas(state, encoder.filter_banks(wave), TINY)
    torch.testing.assert_close(encoder.encode([wave])[0].double(), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("patches", [1, 8, 16, 17, 100])
def test_the_position_convolution_is_the_same_by_fft(patches: int) -> None:
    torch.manual_seed(0)
    convolution = PositionConv(TINY).requires_grad_(False)
    for parameter in convolution.parameters():
        parameter.normal_()
    x = torch.randn(3, patches, TINY.encoder_embed_dim)
    direct = convolution.double()(x.double())  # float64 takes the direct way
    again = PositionConv(TINY).requires_grad_(False)
    again.load_state_dict(convolution.state_dict())
    torch.testing.assert_close(again(x).double(), direct, atol=2e-5, rtol=0)


def test_frames_of_a_clip_are_those_of_the_clip_alone() -> None:
    encoder = tiny_beats()
    clips = waves(1, 7.3, 2.37, 1, 4.999, 10)
    batch = encoder.encode(clips, batch_size=len(clips))
    for clip, frames in zip(clips, batch, strict=True):
        bank_frames = 1 + (len(clip) - 400) // 160
        assert frames.shape == (8 * (bank_frames // 16), encoder.width)
        torch.testing.assert_close(frames, encoder.encode([clip])[0], atol=1e-5, rtol=0)


def test_buckets_by_hand() -> None:
    offsets = torch.tensor([0, 1, -1, 79, -79, 80, 799, 800, 5000, -5000])
    assert relative_bucket(offsets, 320, 800).tolist() == [0, 161, 1, 239, 79, 240, 319, 319, 319, 159]
    table = torch.randn(320, 3)
    bias = relative_position_bias(table, 5, 800)
    assert all(torch.equal(bias[:, d + 4], table[d + 160 if d > 0 else -d]) for d in range(-4, 5))


def test_frozen_and_outside_autocast() -> None:
    encoder = tiny_beats()
    assert not encoder.network.training
    assert not any(parameter.requires_grad for parameter in encoder.network.parameters())
    clips = waves(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = encoder.encode(clips)[0]
    assert torch.equal(inside, encoder.encode(clips)[0])
    assert tiny_beats(dtype=torch.bfloat16).encode(clips)[0].dtype == torch.bfloat16


def test_released_layout_loads_and_the_digest_follows_contents(tmp_path: Path) -> None:
    encoder = load(tmp_path, released())
    assert encoder.digest == tiny_beats().digest
    clips = waves(1.2)
    assert torch.equal(encoder.encode(clips)[0], tiny_beats().encode(clips)[0])
    changed = released()
    changed["model"]["encoder.layers.1.fc1.bias"][0] = 1e-30
    assert load(tmp_path, changed).digest != encoder.digest
    assert load(tmp_path, released(max_distance=801)).digest != encoder.digest


def test_checkpoints_that_do_not_fit_are_explained(tmp_path: Path) -> None:
    checkpoint = released()
    checkpoint["model"][TABLE.format(1)] += 1
    with pytest.raises(ValueError, match=r"layers\.1\..* differs from layer 0's"):
        load(tmp_path, checkpoint)
    checkpoint = released()
    del checkpoint["model"]["layer_norm.bias"]
    checkpoint["model"]["surprise"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"missing layer_norm\.bias \(1\); unexpected surprise \(1\)"):
        load(tmp_path, checkpoint)
    checkpoint = released()
    checkpoint["model"]["layer_norm.bias"] = torch.zeros(5)
    with pytest.raises(ValueError, match=r"layer_norm\.bias has shape \(5,\), the config says \(64,\)"):
        load(tmp_path, checkpoint)
    with pytest.raises(ValueError, match=r"cfg\['layer_norm_first'\] is True, supported is False"):
        load(tmp_path, released(layer_norm_first=True))
    with pytest.raises(ValueError, match="keys 'cfg' and 'model'"):
        load(tmp_path, {"model": {}})
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load(tmp_path, {"cfg": np.random.default_rng(0), "model": {}})  # what would have to be unpickled
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(ValueError, match=r"text\.pt: not a readable checkpoint"):
        BeatsEncoder.from_checkpoint(tmp_path / "text.pt")
    with pytest.raises(ValueError, match="no such file"):
        BeatsEncoder.from_checkpoint(tmp_path / "none.pt")


def test_clip_shorter_than_a_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="15 frames, one patch takes 16"):
        tiny_beats().encode([torch.zeros(400 + 14 * 160)])


@pytest.mark.weights
def test_official_features_alone_and_in_batches() -> None:
    outputs = load_file(GOLDEN / "beats_small" / "outputs.safetensors")
    int16_waves = load_file(GOLDEN / "waves.safetensors")
    encoder = BeatsEncoder.from_checkpoint(GOLDEN / "beats_small" / "beats_small.pt")
    names = [name for name in int16_waves if f"features.{name}" in outputs]
    assert len(names) == 9
    clips = [int16_waves[name].double() / 32768 for name in names]
    for batch_size in (1, 4):
        for name, frames in zip(names, encoder.encode(clips, batch_size=batch_size), strict=True):
            torch.testing.assert_close(frames, outputs[f"features.{name}"], atol=1e-4, rtol=0)


@pytest.mark.weights
def test_official_bucket_table() -> None:
    expected = load_file(GOLDEN / "beats_small" / "outputs.safetensors")["rel_bucket.minus1600_to_1600"]
    assert torch.equal(relative_bucket(torch.arange(-1600, 1601), 320, 800), expected)
