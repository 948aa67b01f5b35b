"""Covers encoders.spectra."""

import hashlib

import pytest
import torch
from safetensors.torch import load_file
from torchaudio.compliance import kaldi

from encoders.beats.filter_banks import FilterBanks, mel_table, povey_window
from tests import SHARED

GOLDEN = SHARED / "golden"

MEL_TABLE_SHA256 = "0e5162fa7db30f8cdfd750638c74f5c6569825133c420065c45b7d1a13f8a2ba"


def wave(samples: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(samples)
    noise = torch.randn(samples, generator=generator, dtype=torch.float64)
    return 0.1 * noise * torch.linspace(0, 1, samples)  # quiet and loud frames


@pytest.mark.parametrize("samples", [400, 16_000, 37_921])
def test_equal_to_torchaudio_in_float64(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Kaldi's own table has other last bits on each kind of processor; another test compares it with ours.
    monkeypatch.setattr(kaldi, "get_mel_banks", lambda *_: (mel_table(), None))
    clip = wave(samples)
    expected = kaldi.fbank(clip.unsqueeze(0) * 2**15, num_mel_bins=128, sample_frequency=16_000, dither=0.0)
    expected = ((expected - 15.41663) / (2 * 6.55582)).float()
    torch.testing.assert_close(FilterBanks()(clip), expected, atol=1e-6, rtol=0)


def test_a_batch_gives_what_each_clip_gives_alone() -> None:
    clips = [wave(16_000).float(), wave(400), wave(100_001)]
    for clip, banks in zip(clips, FilterBanks().batch(clips), strict=True):
        torch.testing.assert_close(banks, FilterBanks()(clip), atol=1e-6, rtol=0)


def test_mel_table_is_kaldis_and_the_same_bits_on_every_processor() -> None:
    kaldis = kaldi.get_mel_banks(128, 512, 16_000.0, 20.0, 0.0, 100.0, -500.0, 1.0)[0]
    torch.testing.assert_close(mel_table(), kaldis, atol=2e-5, rtol=0)  # its float32 logarithm is the processor's
    assert hashlib.sha256(mel_table().numpy().tobytes()).hexdigest() == MEL_TABLE_SHA256


def test_silence_is_finite_and_autocast_changes_nothing() -> None:
    assert FilterBanks()(torch.zeros(16_000)).isfinite().all()
    clip = wave(16_000).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = FilterBanks()(clip)
    assert torch.equal(inside, FilterBanks()(clip))


def test_clip_shorter_than_a_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="399 samples"):
        FilterBanks()(torch.zeros(399))


@pytest.mark.weights
def test_official_filter_banks() -> None:
    outputs = load_file(GOLDEN / "beats_small" / "outputs.safetensors")
    waves = load_file(GOLDEN / "waves.safetensors")
    torch.testing.assert_close(mel_table(), outputs["kaldi.mel_banks_128x256"], atol=2e-5, rtol=0)
    torch.testing.assert_close(povey_window(), outputs["kaldi.povey_window_400_f64"], atol=1e-15, rtol=0)
    names = [name for name in outputs if name.startswith("fbank")]
    assert len(names) == 9
    for name in names:
        stride = 10 if name.startswith("fbank_s10.") else 1
        clip = waves[name.split(".")[1]].double() / 32768
        torch.testing.assert_close(FilterBanks()(clip)[::stride], outputs[name], atol=2e-4, rtol=0)
