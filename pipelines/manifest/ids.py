"""The ids of clips and examples."""

import hashlib
import json
from collections.abc import Sequence

from encoders.audio import Segment


def clip_id(corpus: str, segments: Sequence[Segment]) -> str:
    """Return the 32 hex digits that name a clip, the same on every machine: roots and splits do not count."""
    places = [
        [segment.recording, float(segment.start_seconds), segment.duration_seconds and float(segment.duration_seconds)]
        for segment in segments
    ]
    return _digest([corpus, places])


def example_id(clip: str, task: str, question: str | None, answer: str) -> str:
    """Return the 32 hex digits that name an example."""
    return _digest([clip, task, question, answer])


def _digest(content: object) -> str:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()
