import hashlib
import json
import random

import pytest

from encoders.audio import Segment
from pipelines.manifest.ids import clip_id, example_id

TEXTS = [
    "",
    "plain",
    'a "quoted" \\ word',
    "tab\tline\n\x00\x1f\x7f",
    "é ü ß",
    "\u2028 語 𝄞",
    "\udc80 no UTF-8",
    "null",
]
NUMBERS = [0.0, 1, 12.5, 0.1 + 0.2, 1e-7, 1e22, 123456.789, 5e-324]


def digest(content: object) -> str:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


@pytest.mark.parametrize("seed", range(40))
def test_ids_are_digests_of_what_names_a_clip_and_an_example(seed):
    """Manifests and caches hold these ids: a change would make every clip and example a new one."""
    chance = random.Random(seed)
    corpus, clip, split, task, answer = chance.choices(TEXTS, k=5)
    question = chance.choice([None, *TEXTS])
    places = [
        [chance.choice(TEXTS), float(chance.choice(NUMBERS)), chance.choice([None, *map(float, NUMBERS[1:])])]
        for _ in range(chance.randint(1, 3))
    ]
    assert clip_id(corpus, [Segment(*place) for place in places]) == digest([corpus, places])
    assert example_id(clip, "train", task, question, answer) == digest([clip, task, question, answer])
    assert example_id(clip, split, task, question, answer) == digest([clip, task, question, answer, split])


def test_a_whole_number_of_seconds_names_the_same_clip_as_its_float():
    assert clip_id("x", [Segment("a", 1, 2)]) == clip_id("x", [Segment("a", 1.0, 2.0)])
