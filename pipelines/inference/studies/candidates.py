"""Stories that may be accepted: what a person sees of each, what was decided, and the file that people may edit."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipelines import storage
from pipelines.errors import UserError, shorten
from pipelines.inference.scoring.texts import words
from pipelines.inference.studies.config import StoriesConfig

FILE = "candidates.jsonl"
NGRAM = 3
"""Words in a row that count as repeated; names and single words may come again."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A story about a clip."""

    clip_id: str
    recordings: tuple[str, ...]
    known: tuple[str, ...]
    """What the manifest says of the clip: task and answers."""
    written: str
    """The story as the model wrote it."""
    story: str
    """The story that is learnt if it is accepted: the same, or as a person corrected it."""
    accept: bool | None = None
    """What was decided; None: nothing yet."""


def flaw_of(story: str, config: StoriesConfig) -> str:
    """Return why a story is not offered, in a few words; empty if it is."""
    told = words(story)
    if not config.min_words <= len(told) <= config.max_words:
        return f"{len(told)} words"
    if (share := distinct_share(told)) < config.min_distinct:
        return f"{1 - share:.0%} repeated"
    return ""


def distinct_share(told: Sequence[str]) -> float:
    """Return how many of the rows of `NGRAM` words are different ones, as a share; 1 where there is none."""
    rows = [tuple(told[place : place + NGRAM]) for place in range(len(told) - NGRAM + 1)]
    return len(set(rows)) / len(rows) if rows else 1.0


def write_candidates(folder: str, candidates: Iterable[Candidate], config: StoriesConfig) -> None:
    """Write candidates.jsonl: a line each with its id, what a person needs to decide, and what was decided."""
    lines = [asdict(one) | {"flaw": flaw_of(one.story, config)} for one in candidates]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    storage.write_bytes(storage.join(folder, FILE), text.encode())


def with_decisions(folder: str, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return candidates with what candidates.jsonl says of the same stories: corrections and decisions.

    Raises:
        UserError: If a line of the file is none, naming it.
    """
    uri = storage.join(folder, FILE)
    if not storage.file_exists(uri):
        return list(candidates)
    lines = [_read_line(f"{uri}:{number}", line) for number, line in _lines(uri)]
    decided = {(line["clip_id"], line["written"]): line for line in lines}
    return [
        replace(one, story=line["story"], accept=line["accept"])
        if (line := decided.get((one.clip_id, one.written)))
        else one
        for one in candidates
    ]


def _lines(uri: str) -> list[tuple[int, str]]:
    try:
        text = storage.read_bytes(uri).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{uri}: not UTF-8 ({error})") from None
    return [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _read_line(place: str, text: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except ValueError as error:
        raise UserError(f"{place}: not JSON ({error})") from None
    texts = ("clip_id", "written", "story")
    if not isinstance(line, dict) or not all(isinstance(line.get(name), str) for name in texts):
        raise UserError(f"{place}: {', '.join(texts)} must be texts: {shorten(text)}")
    if line.get("accept", "") not in (None, True, False):
        raise UserError(f"{place}: accept must be true, false or null: {shorten(text)}")
    if line["accept"] and not line["story"].strip():
        raise UserError(f"{place}: an accepted story must not be empty")
    return line
