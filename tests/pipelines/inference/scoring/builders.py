"""What the tests of scores share."""

import random
from collections.abc import Iterator, Sequence

import pytest

from pipelines.inference.scoring.answers import Answered

VOCABULARY = [
    "a",
    "the",
    "dog",
    "dogs",
    "barks",
    "loudly",
    "while",
    "rain",
    "falls",
    "on",
    "roof",
    "and",
    "people",
    "talk",
    "in",
    "background",
    "car",
    "passes",
    "by",
    "engine",
    "wind",
    "blows",
    "birds",
    "sing",
    "two",
    "three",
    "hundred",
    "twenty-five",
    "minutes",
    "isn't",
    "it's",
    "mr",
    "smith's",
    "can't",
    "colour",
    "o'clock",
    "7",
    "3.5",
    "(faint)",
    "speech",
]


@pytest.fixture
def no_java() -> Iterator[None]:
    """Leave METEOR out, whose Java takes seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")
        yield


def answered(references: Sequence[str], answer: str, *, clip: str = "c", question: str = "?") -> Answered:
    return Answered(clip_id=clip, corpus="made", question=question, references=tuple(references), answer=answer)


def pairs(references: Sequence[str], answers: Sequence[str]) -> list[Answered]:
    """Return answers to one reference each, each about a clip of its own."""
    both = enumerate(zip(references, answers, strict=True))
    return [answered([reference], answer, clip=str(place)) for place, (reference, answer) in both]


def sentences(count: int, *, seed: int, most_words: int = 14, vocabulary: Sequence[str] = VOCABULARY) -> list[str]:
    """Return random sentences of at least one word."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(vocabulary, k=draw.randint(1, most_words))) for _ in range(count)]


def captioned(count: int, *, seed: int, references: int = 5) -> list[Answered]:
    """Return random captions, one to five references each, a third of the answers near a reference."""
    draw = random.Random(seed)
    items = []
    for place in range(count):
        known = sentences(draw.randint(1, references), seed=seed + 1000 * place)
        near = " ".join(word for word in known[0].split() if draw.random() > 0.2)
        answer = near if place % 3 else sentences(1, seed=seed + 1000 * place + 7)[0]
        items.append(answered(known, answer, clip=str(place)))
    return items
