"""What a user may choose about the aligner; without PyTorch, for those who only check it."""

from dataclasses import dataclass

from qformer.errors import AlignerError

CLIP_SECONDS = 30
CLIP_FRAMES = 1500  # of either encoder, over CLIP_SECONDS: 50 Hz


def frames_of(seconds: float) -> int:
    """Return the number of frames closest to `seconds`; halves go to the even number, as SALMONN's do."""
    return round(CLIP_FRAMES * seconds / CLIP_SECONDS)


def count_windows(num_frames: int, window_frames: int, stride_frames: int) -> int:
    """Return how many whole windows `num_frames` hold.

    Raises:
        ValueError: If they hold none.
    """
    if num_frames < window_frames:
        raise ValueError(f"{num_frames} frames are less than one window of {window_frames}")
    return (num_frames - window_frames) // stride_frames + 1


def count_reached_windows(num_frames: int, window_frames: int, stride_frames: int) -> int:
    """Return how many windows it takes to reach the last of `num_frames`, the last window whole or not; at least 1."""
    return 1 + max(0, -(-(num_frames - window_frames) // stride_frames))


@dataclass(frozen=True)
class QFormerConfig:
    """What a user may choose about the aligner; the widths around it are given by the encoders and the LLM."""

    num_queries: int = 1
    """[count] Audio tokens made of one window."""
    window_seconds: float = 0.333333
    """[seconds] Audio covered by one window; rounded to 20 ms frames."""
    stride_seconds: float = 0.333333
    """[seconds] From the start of one window to the start of the next; rounded to 20 ms frames."""
    num_layers: int = 2
    """[count] Q-Former layers, each with cross-attention."""
    hidden_width: int = 768
    """[channels] Width of the Q-Former."""
    num_heads: int = 12
    """[count] Attention heads of the Q-Former; they divide hidden_width."""
    ffn_width: int = 3072
    """[channels] Width inside the Q-Former's feed-forward parts."""
    dropout: float = 0.1
    """[probability] Dropout on the Q-Former's hidden values and attention weights while training."""

    def __post_init__(self) -> None:
        for name in ("num_queries", "num_layers", "hidden_width", "num_heads", "ffn_width"):
            if getattr(self, name) < 1:
                raise AlignerError(f"{name} {getattr(self, name)} must be at least 1")
        if self.hidden_width % self.num_heads:
            raise AlignerError(f"hidden_width {self.hidden_width} is not a multiple of num_heads {self.num_heads}")
        for name in ("window_seconds", "stride_seconds"):
            if not 1 <= frames_of(getattr(self, name)) <= CLIP_FRAMES:
                raise AlignerError(f"{name} {getattr(self, name)} must cover from 1 frame (20 ms) to a clip (30 s)")
        if not 0 <= self.dropout < 1:
            raise AlignerError(f"dropout {self.dropout} must be in [0, 1)")

    @property
    def window_frames(self) -> int:
        return frames_of(self.window_seconds)

    @property
    def stride_frames(self) -> int:
        return frames_of(self.stride_seconds)


@dataclass(frozen=True, kw_only=True)
class AlignerConfig(QFormerConfig):
    speech_width: int
    """[channels] Width of the speech stream: 1280 for Whisper large-v2."""
    audio_width: int | None
    """[channels] Width of the audio stream: 768 for BEATs; None to hear the speech stream alone."""
    llm_width: int
    """[channels] Width of the LLM's embeddings: 5120 for Vicuna-13B."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("speech_width", "audio_width", "llm_width"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise AlignerError(f"{name} {getattr(self, name)} must be at least 1")
