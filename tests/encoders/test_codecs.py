import pytest
import torch

from encoders.codecs import dequantise, quantise


def frames() -> torch.Tensor:
    values = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 2, 7)
    values[:, 3] = 0
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
