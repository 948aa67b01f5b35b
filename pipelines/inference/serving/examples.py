"""Examples that the page offers: questions of a manifest about clips of a cache, with their recordings' sound."""

import io
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import soundfile as sf

from encoders.audio import SAMPLE_RATE_HZ
from encoders.sound.clips import load_clip
from llm.prompts import question_for
from pipelines import storage
from pipelines.cache.reader import ClipFeatures, FeatureCache
from pipelines.cache.recipe import Recipe
from pipelines.inference.page.sound import read_some_clips
from pipelines.manifest.tables import Clip, Example, read_examples

LOOKED_UP = 4_096
"""Examples whose clips are looked up at a time."""


@dataclass(frozen=True)
class Offered:
    """An example as the page shows it."""

    clip_id: str
    recordings: list[str]
    task: str
    question: str
    reference: str
    seconds: float


class Examples:
    """Some examples whose clips a cache holds, held-out ones first."""

    def __init__(self, manifest: str, cache: str, *, count: int) -> None:
        """Open both; raises as `FeatureCache` and `read_examples`."""
        self.cache = FeatureCache(cache)
        held_out: dict[str, Example] = {}
        others: dict[str, Example] = {}
        for example in _held(self.cache, read_examples(manifest)):
            found = held_out if example.split.startswith("test") else others
            if len(found) < count:
                found.setdefault(example.clip_id, example)
        picked = [*held_out.values(), *(one for one in others.values() if one.clip_id not in held_out)][:count]
        self._clips: Mapping[str, Clip] = read_some_clips(manifest, [example.clip_id for example in picked])
        self.offered = [
            Offered(
                example.clip_id,
                self._clips[example.clip_id].recordings,
                example.task,
                question_for(example.task, question=example.question, example_id=example.example_id),
                example.answer,
                self._clips[example.clip_id].seconds or 0.0,
            )
            for example in picked
        ]

    def listing(self) -> list[dict[str, Any]]:
        """Return the examples as JSON takes them."""
        return [asdict(example) for example in self.offered]

    def features(self, clip_id: str) -> ClipFeatures:
        """Return the features of an example's clip.

        Raises:
            KeyError: If no example has this clip.
        """
        if clip_id not in self._clips:
            raise KeyError(clip_id)
        return self.cache[clip_id]

    def sound(self, clip_id: str, recipe: Recipe) -> bytes:
        """Return what is heard of an example's clip, as FLAC.

        Raises:
            KeyError: If no example has this clip.
            EncoderError: If its recording cannot be read now.
            OSError: If storage fails.
        """
        wave = load_clip(
            self._clips[clip_id].located(),
            channel=recipe.channel,
            max_clip_seconds=recipe.max_clip_seconds,
            open_file=storage.open_file,
        )
        buffer = io.BytesIO()
        sf.write(buffer, wave.numpy(), SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
        return buffer.getvalue()


def _held(cache: FeatureCache, examples: Iterator[Example]) -> Iterator[Example]:
    """Yield the examples whose clips the cache holds."""
    while some := list(islice(examples, LOOKED_UP)):
        positions = cache.positions([example.clip_id for example in some])
        yield from (example for example, position in zip(some, positions, strict=True) if position >= 0)
