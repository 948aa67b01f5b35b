"""Who decides on stories: a list of ids, a number, a person at the terminal, or a person with an editor."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.console import Console

from pipelines.errors import UserError
from pipelines.inference.studies.candidates import Candidate, flaw_of
from pipelines.inference.studies.config import StoriesConfig

ANSWERS = {"y": True, "n": False}


def accept_named(candidates: Sequence[Candidate], ids: Sequence[str]) -> list[Candidate]:
    """Return candidates of which those about the named clips are accepted.

    Raises:
        UserError: If an id, or the first digits of one, is that of no clip or of several, or its story is empty.
    """
    named = {_find(candidates, one) for one in ids}
    return [replace(one, accept=True) if place in named else one for place, one in enumerate(candidates)]


def _find(candidates: Sequence[Candidate], name: str) -> int:
    found = [place for place, one in enumerate(candidates) if name and one.clip_id.startswith(name)]
    if len(found) != 1:
        several = f"{len(found)} clips begin so" if found else "there is no story about such a clip"
        raise UserError(f"accept={name}: {several}; candidates.jsonl lists them")
    if not candidates[found[0]].story.strip():
        raise UserError(f"accept={name}: the story is empty")
    return found[0]


def accept_first(candidates: Sequence[Candidate], config: StoriesConfig) -> list[Candidate]:
    """Return candidates of which the first `accept_first` that are offered and not declined are accepted."""
    offered = [
        place for place, one in enumerate(candidates) if one.accept is not False and not flaw_of(one.story, config)
    ]
    named = set(offered[: config.accept_first])
    return [replace(one, accept=True) if place in named else one for place, one in enumerate(candidates)]


def ask_person(candidates: Sequence[Candidate], config: StoriesConfig) -> Iterator[list[Candidate]]:
    """Yield all candidates after each answer of a person at the terminal, who is asked about what is not decided."""
    decided, console = list(candidates), Console(markup=False, highlight=False)
    open_places = [
        place for place, one in enumerate(candidates) if one.accept is None and not flaw_of(one.story, config)
    ]
    for number, place in enumerate(open_places, 1):
        one = decided[place]
        console.print(f"\n{number}/{len(open_places)}  clip {one.clip_id}: {', '.join(one.recordings)}")
        for line in one.known:
            console.print(f"  {line}")
        console.print(f"\n{one.story}\n")
        answer = _ask()
        if answer == "q":
            return
        decided[place] = replace(one, accept=ANSWERS[answer])
        yield decided


def _ask() -> str:
    """Return y, n or q; the end of the input is q."""
    while True:
        try:
            answer = input("accept? [y]es, [n]o, [q]uit: ").strip().lower()[:1]
        except EOFError:
            return "q"
        if answer in (*ANSWERS, "q"):
            return answer
