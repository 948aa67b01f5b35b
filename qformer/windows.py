"""Windows over encoder frames. Letters: B clips, T frames, C channels, W windows, K frames per window."""

from torch import Tensor

from qformer.config import count_windows


def split_into_windows(frames_BTC: Tensor, window_frames: int, stride_frames: int) -> Tensor:
    """Return every window as a view of the frames, [B, W, K, C]; window w begins at frame w * stride.

    A last partial window is dropped, and a stride longer than the window skips frames.

    Raises:
        ValueError: If the clips are shorter than one window.
    """
    num_windows = count_windows(frames_BTC.shape[1], window_frames, stride_frames)
    if stride_frames == window_frames:  # the same view, with a much cheaper gradient
        whole_BTC = frames_BTC[:, : num_windows * window_frames]
        return whole_BTC.view(len(frames_BTC), num_windows, window_frames, -1)
    return frames_BTC.unfold(1, window_frames, stride_frames).transpose(2, 3)
