import math

import pytest
import torch

from encoders.codecs import MOST_SNR_DB, dequantise, measure_fidelity, quantise

EXTREMES = ("zeros", "constant channel", "outlier channel", "one spike in each channel", "tiny values", "huge values")


def frames() -> torch.Tensor:
    values = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 2, 7)
    values[:, 3] = 0
    return values


def extreme_frames(kind: str) -> torch.Tensor:
    values = torch.randn(200, 7, generator=torch.Generator().manual_seed(1))
    match kind:
        case "zeros":
            return torch.zeros(200, 7)
        case "constant channel":
            values[:, 2] = -3.7
        case "outlier channel":
            values[:, 5] *= 1e4
        case "one spike in each channel":
            values[17] = 1e3
        case "tiny values":
            values *= 1e-30
        case "huge values":
            values *= 1e37
    return values


def test_float16_keeps_eleven_bits() -> None:
    arrays = quantise(frames(), "float16")
    assert list(arrays) == [""]
    assert arrays[""].dtype == torch.float16
    restored = dequantise(arrays, "float16")
    assert restored.dtype == torch.float32
    torch.testing.assert_close(restored, frames(), rtol=2**-11, atol=2**-25)


def test_int8_is_off_by_half_a_scale_at_most() -> None:
    arrays = quantise(frames(), "int8")
    assert arrays[""].dtype == torch.int8
    assert (arrays["scale"].dtype, arrays["scale"].shape) == (torch.float32, (7,))
    torch.testing.assert_close(arrays["scale"] * 127, frames().abs().amax(0))
    error = (dequantise(arrays, "int8") - frames()).abs()
    assert (error <= arrays["scale"] * 0.50001).all()
    assert not error[:, 3].any()
    assert arrays[""].amin() >= -127


@pytest.mark.parametrize("kind", EXTREMES)
def test_int8_keeps_its_bounds_on_extreme_frames(kind: str) -> None:
    values = extreme_frames(kind)
    arrays = quantise(values, "int8")
    restored = dequantise(arrays, "int8")
    assert ((restored - values).abs() <= arrays["scale"] * 0.50001).all()
    # Half a step is at most 1/254 of a channel's largest value, whose square alone is in the channel's energy.
    bound_db = 20 * math.log10(254) - 10 * math.log10(len(values))
    assert measure_fidelity(values, restored).snr_db >= bound_db


@pytest.mark.parametrize("kind", EXTREMES[:4])
def test_float16_keeps_66_db_of_values_in_its_range(kind: str) -> None:
    values = extreme_frames(kind)
    assert measure_fidelity(values, dequantise(quantise(values, "float16"), "float16")).snr_db > 66


def test_fidelity_is_that_of_the_formula() -> None:
    computed = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    stored = torch.tensor([[3.0, 3.0], [2.0, 2.0]])
    measured = measure_fidelity(computed, stored)
    assert measured.snr_db == pytest.approx(10 * math.log10((25 + 4) / (1 + 4)))
    cosines = [21 / (5 * math.sqrt(18)), math.sqrt(0.5)]
    assert measured.worst_cosine == pytest.approx(cosines[1])
    assert measured.cosine == pytest.approx(sum(cosines) / 2)


def test_exact_frames_have_the_best_fidelity_and_lost_ones_the_worst() -> None:
    for values in (frames(), torch.zeros(4, 3)):
        best = measure_fidelity(values, values)
        assert (best.snr_db, best.cosine, best.worst_cosine) == (MOST_SNR_DB, 1, 1)
    assert measure_fidelity(torch.zeros(4, 3), torch.ones(4, 3)).snr_db == -MOST_SNR_DB
    assert measure_fidelity(torch.full((4, 3), 1e-9), torch.zeros(4, 3)).snr_db == 0


def test_a_prefix_of_the_bytes_is_a_prefix_of_the_clip() -> None:
    for codec in ("float16", "int8"):
        arrays = quantise(frames(), codec)
        assert arrays[""].is_contiguous()
        head = dequantise(arrays | {"": arrays[""][:10]}, codec)
        assert torch.equal(head, dequantise(arrays, codec)[:10])


def test_half_precision_frames_quantise_as_their_float32_values() -> None:
    half = frames().bfloat16()
    for codec in ("float16", "int8"):
        assert torch.equal(quantise(half, codec)[""], quantise(half.float(), codec)[""])


@pytest.mark.parametrize(
    ("value", "codec"),
    [(float("nan"), "float16"), (float("nan"), "int8"), (float("-inf"), "int8"), (70_000.0, "float16")],
)
def test_values_a_codec_cannot_hold_are_named(value: float, codec: str) -> None:
    bad = frames()
    bad[4, 2] = value
    with pytest.raises(ValueError, match=f"frame 4, channel 2 is {value}, which {codec} cannot hold"):
        quantise(bad, codec)


def test_unknown_codec_is_named() -> None:
    with pytest.raises(ValueError, match="codec 'int4' is not one of float16, int8"):
        quantise(frames(), "int4")
