"""Covers encoders.digest, encoders.whisper.network."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from encoders.audio import CLIP_SAMPLES, Segment
from encoders.sound.clips import load_clip
from encoders.whisper.encoder import WhisperEncoder
from tests import SHARED

GOLDEN = SHARED / "golden"
TINY_EN = SHARED / "data" / "weights" / "whisper-tiny.en-encoder"


def waves(*seconds: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(round(16_000 * length), generator=generator) for length in seconds]


def small_model(mels: int = 80, **sizes: int) -> WhisperModel:
    sizes = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 48} | sizes
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 8, "vocab_size": 8}
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
    torch.manual_seed(0)
    return WhisperModel(WhisperConfig(num_mel_bins=mels, init_std=0.2, **sizes, **decoder, **tokens)).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_model().save_pretrained(tmp_path / "whisper")
    return tmp_path / "whisper"


@pytest.mark.parametrize("mels", [80, 128])
@torch.inference_mode()
def test_frames_equal_transformers(tmp_path: Path, mels: int) -> None:
    model = small_model(mels)
    model.save_pretrained(tmp_path)
    encoder = WhisperEncoder.from_pretrained(tmp_path)
    clips = waves(1, 2.37, 30)
    extractor = WhisperFeatureExtractor(feature_size=mels)
    mel = extractor([clip.numpy() for clip in clips], sampling_rate=16_000, return_tensors="pt").input_features
    torch.testing.assert_close(encoder.log_mel(clips), mel, atol=1e-5, rtol=0)
    frames = encoder.encode(clips, batch_size=2)
    assert all(clip.shape == (1500, encoder.width) for clip in frames)
    torch.testing.assert_close(torch.stack(frames), model.encoder(mel).last_hidden_state, atol=2e-5, rtol=0)


def test_frozen_and_outside_autocast(folder: Path) -> None:
    encoder = WhisperEncoder.from_pretrained(folder)
    assert not encoder.module.training
    assert not any(parameter.requires_grad for parameter in encoder.module.parameters())
    clips = waves(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder.encode(clips)[0], WhisperEncoder.from_pretrained(folder).encode(clips)[0])
    half = WhisperEncoder.from_pretrained(folder, dtype=torch.bfloat16)
    assert half.encode(clips)[0].dtype == torch.bfloat16
    assert half.digest == encoder.digest


def test_digest_follows_contents_not_path(folder: Path, tmp_path: Path) -> None:
    digest = WhisperEncoder.from_pretrained(folder).digest
    other = tmp_path / "elsewhere"
    shutil.copytree(folder, other)
    assert WhisperEncoder.from_pretrained(other).digest == digest
    state = load_file(other / "model.safetensors")
    state["decoder.layer_norm.bias"] += 1
    save_file(state, other / "model.safetensors")
    assert WhisperEncoder.from_pretrained(other).digest == digest
    state["encoder.layers.1.fc2.bias"][3] = np.nextafter(np.float32(0), np.float32(1)).item()
    save_file(state, other / "model.safetensors")
    assert WhisperEncoder.from_pretrained(other).digest != digest


def test_sharded_weights_and_full_model_names_load(folder: Path, tmp_path: Path) -> None:
    state = {f"model.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    names = sorted(state)
    parts = {"a.safetensors": names[: len(names) // 2], "b.safetensors": names[len(names) // 2 :]}
    other = tmp_path / "sharded"
    other.mkdir()
    shutil.copy(folder / "config.json", other)
    for file, members in parts.items():
        save_file({name: state[name] for name in members}, other / file)
    weight_map = {name: file for file, members in parts.items() for name in members}
    (other / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert WhisperEncoder.from_pretrained(other).digest == WhisperEncoder.from_pretrained(folder).digest


def test_wrong_folders_are_explained(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json; expected a Whisper folder"):
        WhisperEncoder.from_pretrained(tmp_path)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        WhisperEncoder.from_pretrained(folder)
    del state["encoder.conv1.bias"]
    save_file(state | {"encoder.extra": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing conv1\.bias \(1\); unexpected extra \(1\)"):
        WhisperEncoder.from_pretrained(folder)
    save_file(state | {"encoder.conv1.bias": torch.zeros(3)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"conv1\.bias has shape \(3,\), the config says \(32,\)"):
        WhisperEncoder.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_source_positions": 750}))
    with pytest.raises(ValueError, match="max_source_positions is 750"):
        WhisperEncoder.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(ValueError, match="model_type is 'llama'"):
        WhisperEncoder.from_pretrained(folder)


def test_clip_over_thirty_seconds_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=f"{CLIP_SAMPLES + 1} samples"):
        WhisperEncoder.from_pretrained(folder).log_mel([torch.zeros(CLIP_SAMPLES + 1)])


@pytest.mark.weights
def test_official_log_mel_and_hidden_states() -> None:
    outputs = load_file(GOLDEN / "whisper_small" / "outputs.safetensors")
    int16_waves = load_file(GOLDEN / "waves.safetensors")
    encoder = WhisperEncoder.from_pretrained(GOLDEN / "whisper_small")
    for name in ("synth_1p00s", "synth_2p37s", "excitement", "synth_30s"):
        head = outputs[f"logmel_head.{name}"]
        mel = torch.full((80, 3000), outputs[f"logmel_fill.{name}"].item())
        mel[:, : head.shape[1]] = head
        ours = encoder.log_mel([int16_waves[name].double() / 32768])[0]
        torch.testing.assert_close(ours, mel, atol=5e-5, rtol=0)
        frames = encoder.encode_mel(mel.unsqueeze(0))[0]
        if (all_frames := outputs.get(f"last_hidden_state.{name}")) is not None:
            torch.testing.assert_close(frames, all_frames, atol=2e-5, rtol=0)
        else:
            torch.testing.assert_close(frames[::15], outputs[f"last_hidden_state_s15.{name}"], atol=2e-5, rtol=0)


@pytest.mark.weights
@torch.inference_mode()
def test_real_weights_on_real_recordings_equal_transformers() -> None:
    encoder = WhisperEncoder.from_pretrained(TINY_EN)
    recordings = [
        SHARED / "data" / "single" / "jfk.flac",
        SHARED / "data" / "formats" / "LJ001-0002.mp3",
        SHARED / "data" / "salmonn_demo" / "duck.wav",
    ]
    clips = [load_clip([Segment(str(path))]) for path in recordings]
    extractor = WhisperFeatureExtractor.from_pretrained(TINY_EN)
    mel = extractor([clip.numpy() for clip in clips], sampling_rate=16_000, return_tensors="pt").input_features
    expected = WhisperModel.from_pretrained(TINY_EN).eval().encoder(mel).last_hidden_state
    torch.testing.assert_close(torch.stack(encoder.encode(clips)), expected, atol=2e-4, rtol=1e-4)
