"""The ids of clips and examples."""

import hashlib
from collections.abc import Sequence
from json.encoder import encode_basestring_ascii

from encoders.audio import Segment


def clip_id(corpus: str, segments: Sequence[Segment]) -> str:
    """Return the 32 hex digits that name a clip, the same on every machine: roots and splits do not count."""
    places = [
        _listed(_text(segment.recording), _number(segment.start_seconds), _number(segment.duration_seconds))
        for segment in segments
    ]
    return _digest(_text(corpus), _listed(*places))


def example_id(clip: str, split: str, task: str, question: str | None, answer: str) -> str:
    """Return the 32 hex digits that name an example; the same in two splits are two, whose leak can be found."""
    content = (_text(clip), _text(task), _text(question), _text(answer))
    return _digest(*content) if split == "train" else _digest(*content, _text(split))


def _digest(*items: str) -> str:
    return hashlib.blake2b(_listed(*items).encode(), digest_size=16).hexdigest()


# JSON as `json.dumps` writes it, in half its time: a prepare makes two ids of every example.


def _listed(*items: str) -> str:
    return f"[{', '.join(items)}]"


def _text(text: str | None) -> str:
    return "null" if text is None else encode_basestring_ascii(text)


def _number(number: float | None) -> str:
    return "null" if number is None else repr(float(number))
