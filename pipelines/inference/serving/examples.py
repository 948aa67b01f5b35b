"""Examples that the page offers: questions of a manifest about clips of a cache, with their recordings' sound."""

import io
from collections import deque
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
    """Some examples whose clips a cache holds, held-out ones first, the tasks by turns."""

    def __init__(self, manifest: str, cache: str, *, count: int) -> None:
        """Open both; raises as `FeatureCache` and `read_examples`."""
        self.cache = FeatureCache(cache)
        found: dict[tuple[bool, str], dict[str, Example]] = {}
        """By whether they were learnt, and by task, each clip's first."""

        def of_its_kind(example: Example) -> dict[str, Example]:
            return found.setdefault((not example.split.startswith("test"), example.task), {})

        wanted = (example for example in read_examples(manifest) if len(of_its_kind(example)) < count)
        for example in _held(self.cache, wanted):
            of_its_kind(example).setdefault(example.clip_id, example)
        picked = _by_turns(found, count)
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


def _by_turns(found: Mapping[tuple[bool, str], Mapping[str, Example]], count: int) -> list[Example]:
    """Return so many examples of different clips: those not learnt first, in each half one of each task by turns."""
    picked: dict[str, Example] = {}
    for is_learnt in (False, True):
        turns = deque(iter(of_one.values()) for (learnt, _), of_one in found.items() if learnt == is_learnt)
        while turns and len(picked) < count:
            of_task = turns.popleft()
            for example in of_task:
                if example.clip_id not in picked:  # tasks may share clips: a clip that another has had costs no turn
                    picked[example.clip_id] = example
                    turns.append(of_task)
                    break
    return list(picked.values())


def _held(cache: FeatureCache, examples: Iterator[Example]) -> Iterator[Example]:
    """Yield the examples whose clips the cache holds."""
    while some := list(islice(examples, LOOKED_UP)):
        positions = cache.positions([example.clip_id for example in some])
        yield from (example for example, position in zip(some, positions, strict=True) if position >= 0)
