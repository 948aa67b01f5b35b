import pytest
import torch

from qformer.config import count_windows, frames_of
from qformer.windows import split_into_windows


@pytest.mark.parametrize(("seconds", "frames"), [(0.333333, 17), (0.25, 12), (0.5, 25), (30, 1500), (0.27, 14)])
def test_seconds_become_frames_with_halves_to_even(seconds: float, frames: int) -> None:
    assert frames_of(seconds) == frames


@pytest.mark.parametrize("num_frames", [17, 18, 100, 1500])
@pytest.mark.parametrize(("window", "stride"), [(17, 17), (10, 4), (4, 10), (1, 1), (17, 1)])
def test_every_window_is_the_slice_it_says(num_frames: int, window: int, stride: int) -> None:
    frames = torch.randn(2, num_frames, 3)
    windows = split_into_windows(frames, window, stride)
    slices = [frames[:, start : start + window] for start in range(0, num_frames - window + 1, stride)]
    assert torch.equal(windows, torch.stack(slices, dim=1))
    assert windows.shape[1] == count_windows(num_frames, window, stride)


def test_thirty_seconds_are_88_windows_and_the_partial_one_is_dropped() -> None:
    assert count_windows(1500, 17, 17) == 88
    assert count_windows(1512, 17, 17) == 88
    assert count_windows(1513, 17, 17) == 89


def test_less_than_a_window_is_an_error() -> None:
    with pytest.raises(ValueError, match="16 frames are less than one window of 17"):
        split_into_windows(torch.zeros(1, 16, 2), 17, 17)
