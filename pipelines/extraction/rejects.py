"""When an extraction has too many rejects to go on."""

import math
from dataclasses import dataclass

EARLY_CLIPS = 2_000
"""Clips of a run from which on their rejects say something about the rest: a damaged recording is often 100 clips."""
EARLY_DEVIATIONS = 5.0
"""Standard deviations by which they must exceed `max_reject_fraction`: the test is repeated with each shard."""


@dataclass(frozen=True)
class RejectLimit:
    """When a job has too many rejects: `fraction` of the planned clips, of which `known` were rejected before."""

    fraction: float
    planned: int
    known: int

    def exceeded(self, *, clips: int, rejects: int) -> str | None:
        """Say how a run that has seen so many clips exceeds the limit, or return None.

        The lower bound is Wilson's for a proportion: (p + z²/2n - z √(p(1-p)/n + z²/4n²)) / (1 + z²/n).
        """
        if self.known + rejects > math.ceil(self.fraction * self.planned):
            return f"{self.known + rejects} of {self.planned} clips were rejected"
        if clips < EARLY_CLIPS:
            return None
        share, spread = rejects / clips, EARLY_DEVIATIONS**2 / clips
        root = math.sqrt(share * (1 - share) * spread + spread**2 / 4)
        if (share + spread / 2 - root) / (1 + spread) > self.fraction:
            return f"{rejects} of the first {clips} clips of this run were rejected"
        return None
