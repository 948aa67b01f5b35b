"""Our Q-Former against transformers' BERT layers (with cross-attention) that hold the same weights."""

import pytest
import torch
from torch import nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from qformer.qformer import QFormer
from qformer.windows import split_into_windows

WIDTH, FRAME_WIDTH, HEADS, FFN = 24, 10, 3, 40


def test_equals_blip2_qformer_with_the_same_weights(qformer: QFormer, reference: Blip2QFormerModel) -> None:
    frames = torch.randn(2, 23, FRAME_WIDTH)
    windows = split_into_windows(frames, 5, 3).flatten(0, 1)
    queries = qformer.query_tokens.expand(len(windows), -1, -1)
    expected = reference(query_embeds=queries, encoder_hidden_states=windows).last_hidden_state
    actual = qformer(frames, window_frames=5, stride_frames=3).flatten(0, 1)
    torch.testing.assert_close(actual, expected, atol=2e-6, rtol=1e-5)


def test_gradients_equal_those_of_blip2_qformer(qformer: QFormer, reference: Blip2QFormerModel) -> None:
    frames = torch.randn(1, 15, FRAME_WIDTH)
    direction = torch.randn(3, 2, WIDTH)
    windows = split_into_windows(frames, 5, 5).flatten(0, 1)
    queries = qformer.query_tokens.detach().expand(3, -1, -1)
    (reference(query_embeds=queries, encoder_hidden_states=windows).last_hidden_state * direction).sum().backward()
    (qformer(frames, window_frames=5, stride_frames=5).flatten(0, 1) * direction).sum().backward()
    for ours, theirs in _same_modules(qformer, reference):
        for name, parameter in ours.named_parameters():
            expected = theirs.get_parameter(name).grad
            assert parameter.grad is not None and expected is not None
            torch.testing.assert_close(parameter.grad, expected, atol=1e-5, rtol=1e-4)


def test_a_window_sees_only_its_own_frames(qformer: QFormer) -> None:
    frames = torch.randn(1, 20, FRAME_WIDTH)
    changed = frames.clone()
    changed[:, 7] += 1
    before, after = (qformer(clip, window_frames=5, stride_frames=5)[0] for clip in (frames, changed))
    assert (before != after).flatten(1).any(dim=1).tolist() == [False, True, False, False]


def test_initial_weights_are_berts_at_berts_width() -> None:
    torch.manual_seed(0)
    wide = QFormer(768, 32, num_queries=1, num_layers=1, num_heads=12, ffn_width=64, dropout=0.1)
    assert wide.layers[0].cross_attention.query.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert wide.query_tokens.std().item() == pytest.approx(0.02, rel=0.1)
    assert not wide.layers[0].feed_forward.input.bias.any()


def test_dropout_acts_only_in_training(qformer: QFormer) -> None:
    frames = torch.randn(1, 5, FRAME_WIDTH)
    once, again = (qformer(frames, window_frames=5, stride_frames=5) for _ in range(2))
    assert torch.equal(once, again)
    qformer.train()
    once, again = (qformer(frames, window_frames=5, stride_frames=5) for _ in range(2))
    assert not torch.equal(once, again)


@pytest.fixture
def qformer() -> QFormer:
    torch.manual_seed(0)
    model = QFormer(WIDTH, FRAME_WIDTH, num_queries=2, num_layers=2, num_heads=HEADS, ffn_width=FFN, dropout=0.5).eval()
    for parameter in model.parameters():  # norms and biases too
        nn.init.normal_(parameter, std=0.5)
    return model


@pytest.fixture
def reference(qformer: QFormer) -> Blip2QFormerModel:
    config = Blip2QFormerConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=FFN,
        encoder_hidden_size=FRAME_WIDTH,
        cross_attention_frequency=1,
        layer_norm_eps=1e-12,
        hidden_act="gelu",
    )
    model = Blip2QFormerModel(config).eval()
    for ours, theirs in _same_modules(qformer, model):
        theirs.load_state_dict(ours.state_dict())
    return model


def _same_modules(qformer: QFormer, reference: Blip2QFormerModel) -> list[tuple[nn.Module, nn.Module]]:
    pairs: list[tuple[nn.Module, nn.Module]] = [(qformer.norm, reference.layernorm)]
    for ours, theirs in zip(qformer.layers, reference.encoder.layer, strict=True):
        for attention, other in (
            (ours.self_attention, theirs.attention),
            (ours.cross_attention, theirs.crossattention),
        ):
            inner = other.attention
            pairs += [(attention.query, inner.query), (attention.key, inner.key), (attention.value, inner.value)]
            pairs += [(attention.output, other.output.dense), (attention.norm, other.output.LayerNorm)]
        pairs += [
            (ours.feed_forward.input, theirs.intermediate_query.dense),
            (ours.feed_forward.output, theirs.output_query.dense),
            (ours.feed_forward.norm, theirs.output_query.LayerNorm),
        ]
    return pairs
