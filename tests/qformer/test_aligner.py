"""Covers qformer.config."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from qformer.aligner import Aligner
from qformer.config import AlignerConfig
from qformer.official import load_official
from tests import SHARED

GOLDEN = SHARED / "golden" / "qformer_small"
SMALL = AlignerConfig(speech_width=12, audio_width=8, llm_width=10, hidden_width=24, num_heads=4, ffn_width=32)


@pytest.mark.weights
@pytest.mark.parametrize("case", ["ta1496", "ta350", "ta1500", "ta1510", "ta1520", "overlap", "q4"])
def test_equals_the_official_model(case: str) -> None:
    options = next(c for c in json.loads((GOLDEN / "config.json").read_text())["cases"] if c["name"] == case)
    config = AlignerConfig(
        speech_width=64,
        audio_width=48,
        llm_width=64,
        num_queries=options["num_query_token"],
        window_seconds=options["second_per_window"],
        stride_seconds=options["second_stride"],
        hidden_width=96,
        num_heads=4,
        ffn_width=384,
    )
    weights = load_file(GOLDEN / "weights.safetensors")
    four_queries = weights.pop("speech_query_tokens_q4")
    if config.num_queries == 4:
        weights["speech_query_tokens"] = four_queries
    aligner = Aligner(config).eval()
    load_official(aligner, weights)
    inputs, outputs = (load_file(GOLDEN / f"{name}.safetensors") for name in ("inputs", "outputs"))
    speech = inputs["speech"][: options["batch"], : options["speech_len"]]
    audio = inputs["audio"][: options["batch"], : options["audio_len"]]
    tokens = aligner(speech, audio)
    torch.testing.assert_close(tokens, outputs[f"{case}.output"], atol=5e-5, rtol=0)
    assert tokens.shape[1] == aligner.num_tokens(max(options["speech_len"], options["audio_len"]))


@pytest.mark.parametrize("lengths", [(56, 496, 1496), (8, 8, 8), (1496, 16, 504)])
def test_a_clip_in_a_batch_gives_what_it_gives_alone(aligner: Aligner, lengths: tuple[int, ...]) -> None:
    speech = torch.randn(3, 1500, 12)
    audio = [torch.randn(length, 8) for length in lengths]
    padded = torch.nn.utils.rnn.pad_sequence(audio, batch_first=True)
    batch = aligner(speech, padded, audio_frames=torch.tensor(lengths))
    alone = torch.cat([aligner(speech[i : i + 1], audio[i].unsqueeze(0)) for i in range(3)])
    torch.testing.assert_close(batch, alone, atol=1e-6, rtol=1e-5)


def test_what_lies_in_the_padding_does_not_matter(aligner: Aligner) -> None:
    speech, audio = torch.randn(2, 100, 12), torch.randn(2, 60, 8)
    frames = {"speech_frames": torch.tensor([100, 40]), "audio_frames": torch.tensor([16, 60])}
    clean = aligner(speech, audio, **frames)
    speech[1, 40:], audio[0, 16:] = 7.0, -3.0
    assert torch.equal(aligner(speech, audio, **frames), clean)


@pytest.mark.parametrize(("window", "stride"), [(0.34, 0.34), (0.34, 0.2), (0.2, 0.3), (0.02, 0.02), (1.0, 0.5)])
def test_clips_of_their_own_lengths_reach_their_last_frame_and_no_further(window: float, stride: float) -> None:
    """Of each clip alone: both norms, zeros behind its frames, every window that begins before they end."""
    torch.manual_seed(0)
    aligner = Aligner(dataclasses.replace(SMALL, window_seconds=window, stride_seconds=stride)).eval()
    lengths, audio_lengths = torch.tensor([1, 17, 18, 60, 34]), torch.tensor([0, 8, 16, 56, 32])
    speech, audio = torch.randn(5, 60, 12), torch.randn(5, 56, 8)
    tokens = aligner.by_clip(speech, audio, speech_frames=lengths, audio_frames=audio_lengths)
    counts = [aligner.num_reached_tokens(int(length)) for length in lengths]
    assert aligner.ln_audio is not None and len(tokens) == sum(counts) and min(counts) >= 1
    for clip, own in enumerate(tokens.split(counts)):
        size, step = aligner.config.window_frames, aligner.config.stride_frames
        frames = torch.zeros(1, (counts[clip] - 1) * step + size, 20)
        reached = min(int(lengths[clip]), frames.shape[1])
        assert reached == lengths[clip] or step > size  # frames between windows are skipped
        frames[:, :reached, :12] = aligner.ln_speech(speech[clip : clip + 1, :reached])
        heard = min(int(audio_lengths[clip]), frames.shape[1])
        frames[:, :heard, 12:] = aligner.ln_audio(audio[clip : clip + 1, :heard])
        expected = aligner.projection(aligner.qformer(frames, window_frames=size, stride_frames=step).flatten(1, 2))
        torch.testing.assert_close(own, expected[0], atol=1e-6, rtol=1e-5)


def test_padding_is_zero_after_the_norm(aligner: Aligner) -> None:
    """The same numbers by hand: norm, zeros, concatenation, Q-Former, projection."""
    speech, audio = torch.randn(1, 34, 12), torch.randn(1, 20, 8)
    assert aligner.ln_audio is not None
    frames = torch.cat(
        [aligner.ln_speech(speech), torch.nn.functional.pad(aligner.ln_audio(audio), (0, 0, 0, 14))], dim=-1
    )
    expected = aligner.projection(aligner.qformer(frames, window_frames=17, stride_frames=17).flatten(1, 2))
    assert torch.equal(aligner(speech, audio), expected)


def test_speech_alone_needs_no_audio() -> None:
    aligner = Aligner(dataclasses.replace(SMALL, audio_width=None)).eval()
    assert aligner(torch.randn(2, 1500, 12), None).shape == (2, 88, 10)
    with pytest.raises(ValueError, match=r"audio_width is None, but audio is a tensor of shape \[2, 8, 8\]"):
        aligner(torch.randn(2, 1500, 12), torch.randn(2, 8, 8))


def test_float16_features_are_read_in_the_aligners_precision(aligner: Aligner) -> None:
    speech, audio = torch.randn(1, 34, 12).half(), torch.randn(1, 20, 8).half()
    assert torch.equal(aligner(speech, audio), aligner(speech.float(), audio.float()))


def test_wrong_streams_are_named(aligner: Aligner) -> None:
    with pytest.raises(ValueError, match="audio_width is 8, but audio is missing"):
        aligner(torch.randn(1, 34, 12), None)
    with pytest.raises(ValueError, match=r"speech is a tensor of shape \[1, 34, 9\], expected \[clips, frames, 12\]"):
        aligner(torch.randn(1, 34, 9), torch.randn(1, 34, 8))


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_heads", 5), ("llm_width", 0), ("audio_width", 0), ("stride_seconds", 0.001), ("dropout", 1.0)],
)
def test_impossible_settings_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field}.* {value}"):
        dataclasses.replace(SMALL, **{field: value})  # type: ignore[arg-type]


def test_the_papers_aligner_has_the_papers_size() -> None:
    with torch.device("meta"):
        aligner = Aligner(AlignerConfig(speech_width=1280, audio_width=768, llm_width=5120))
    assert sum(parameter.numel() for parameter in aligner.parameters()) == pytest.approx(26.7e6, rel=0.01)


def test_every_parameter_gets_a_gradient(aligner: Aligner) -> None:
    tokens: Tensor = aligner(torch.randn(1, 34, 12), torch.randn(1, 20, 8))
    tokens.square().sum().backward()
    assert [name for name, parameter in aligner.named_parameters() if parameter.grad is None] == []


@pytest.fixture
def aligner() -> Aligner:
    torch.manual_seed(0)
    model = Aligner(SMALL).eval()
    for norm in (model.ln_speech, model.ln_audio):
        assert norm is not None
        torch.nn.init.normal_(norm.bias)  # so that normed padding would be seen
    return model


@pytest.mark.parametrize("stride_seconds", [0.333333, 0.2])
@pytest.mark.parametrize("audio_width", [8, None])
def test_clips_over_30_s_have_the_same_tokens_in_spans_as_at_once(audio_width, stride_seconds) -> None:
    config = dataclasses.replace(SMALL, audio_width=audio_width, stride_seconds=stride_seconds)
    aligner = Aligner(config).eval()
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([3_107, 40, 1_500, 3_000])
    speech = torch.randn(4, 3_107, 12, generator=generator)
    frames: dict = {"speech_frames": lengths}
    audio = None
    if audio_width:
        audio, frames["audio_frames"] = torch.randn(4, 3_104, 8, generator=generator), lengths - 4
    at_once = aligner.by_clip(speech, audio, **frames)
    with torch.no_grad():
        in_spans = aligner.by_clip(speech, audio, **frames)
    assert at_once.requires_grad and len(in_spans) == sum(map(aligner.num_reached_tokens, lengths.tolist()))
    torch.testing.assert_close(in_spans, at_once.detach(), atol=1e-5, rtol=1e-5)
