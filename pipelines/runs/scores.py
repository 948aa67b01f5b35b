"""A run's scores.jsonl: what its checkpoints scored while it trained, a line for each score."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pipelines import storage
from pipelines.errors import UserError

SCORES = "scores.jsonl"


@dataclass(frozen=True)
class ScoreLine:
    """A score of a checkpoint: rates, accuracies and BLEU are fractions."""

    step: int
    task: str
    test_set: str
    score: str
    value: float


def read_scores(run: str) -> list[ScoreLine]:
    """Return a run's lines in the order in which they came; none if there is no file.

    Raises:
        UserError: If the file is damaged.
    """
    uri = storage.join(run, SCORES)
    if not storage.file_exists(uri):
        return []
    try:
        return [ScoreLine(**json.loads(line)) for line in storage.read_bytes(uri).decode().splitlines()]
    except (ValueError, TypeError) as error:
        raise UserError(f"{uri}: damaged, not a score a line ({error})") from None


def add_scores(run: str, lines: Sequence[ScoreLine]) -> None:
    """Add lines to a run's scores. Raises as `read_scores`."""
    text = "".join(json.dumps(asdict(line)) + "\n" for line in [*read_scores(run), *lines])
    storage.write_bytes(storage.join(run, SCORES), text.encode())
