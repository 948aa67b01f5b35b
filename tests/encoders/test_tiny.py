"""Covers encoders.audio."""

import pytest
import torch

from encoders.audio import Segment
from encoders.clip_encoder import ClipEncoder
from encoders.sound.clips import load_clip
from encoders.tiny import tiny_beats, tiny_whisper
from tests import SHARED

DIGITS = SHARED / "data" / "fsdd" / "recordings"


def test_weights_are_the_same_bits_on_every_machine() -> None:
    assert tiny_whisper().digest == "5a0ea4b97f36ebc7277abdb25e3238f04d6698bd34fb5e5f5c3d293b16ec61aa"
    assert tiny_beats().digest == "c37d61aac4c2552ed31f14a505980796feb490d903c4faf353845626120846f1"
    assert tiny_whisper(seed=1).digest != tiny_whisper().digest


def test_different_sounds_give_different_frames() -> None:
    time = torch.arange(16_000) / 16_000
    tones = [0.3 * torch.sin(2 * torch.pi * hertz * time) for hertz in (300, 1_000, 3_000)]
    encoder = ClipEncoder(tiny_whisper(), tiny_beats())
    for stream in ("speech", "audio"):
        frames = torch.stack([clip[stream][:48] for clip in encoder.encode(tones)])
        assert frames.isfinite().all()
        between_tones = (frames - frames.mean(0)).square().mean()
        assert between_tones > 0.1 * frames.var()  # the rest: positions, bands, channels


@pytest.mark.weights
def test_spoken_digits_are_linearly_separable() -> None:
    paths = sorted(DIGITS.glob("?_[gj]*_[0-2].wav"))
    digits = torch.tensor([int(path.stem[0]) for path in paths])
    is_test = torch.tensor([path.stem.endswith("_2") for path in paths])
    assert (len(paths), int(is_test.sum())) == (60, 20)
    streams = ClipEncoder(tiny_whisper(), tiny_beats()).encode([load_clip([Segment(str(path))]) for path in paths])
    speech = torch.stack([clip["speech"][:51].unflatten(0, (3, 17)).mean(1).flatten() for clip in streams])
    bands = torch.stack([clip["audio"][:48].unflatten(0, (3, 2, 8)).mean(1).flatten() for clip in streams])
    assert ridge_accuracy(speech, digits, is_test) >= 0.7
    assert ridge_accuracy(bands, digits, is_test) >= 0.7


def ridge_accuracy(features: torch.Tensor, labels: torch.Tensor, is_test: torch.Tensor) -> float:
    """Fit ten linear scores on the training rows and return how often the best is right on the others."""
    known = features[~is_test]
    scaled = (features - known.mean(0)) / (known.std(0) + 1e-4)
    kernel = scaled @ scaled[~is_test].T + 1.0
    targets = torch.nn.functional.one_hot(labels, 10).float()[~is_test]
    weights = torch.linalg.solve(kernel[~is_test] + 10 * torch.eye(len(known)), targets)
    return (kernel[is_test] @ weights).argmax(1).eq(labels[is_test]).float().mean().item()
