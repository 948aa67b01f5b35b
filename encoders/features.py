"""What features are called and how they are described; without PyTorch, for those who plan, store and list them."""

from dataclasses import dataclass
from typing import Literal

SPEECH_FRAMES = 1500  # 30 s of 20 ms

Codec = Literal["float16", "int8"]
"""How frames are stored: as float16, or as int8 with a scale per channel and clip."""
Kernel = Literal["sdpa", "flex"]
"""What computes BEATs' attention: "sdpa" on any device; "flex", one fused kernel compiled on first use, on CUDA."""


@dataclass(frozen=True)
class Fidelity:
    """How near a clip's stored frames are to those computed."""

    snr_db: float
    """[dB] Energy of the frames over that of the error, within ±150."""
    cosine: float
    """[1] Of each frame with itself as computed, the mean over the frames."""
    worst_cosine: float
    """[1] The same, of the worst frame."""
