"""`salmonn evaluations compare`: two evaluations side by side, with what chance makes of their differences."""

from collections.abc import Iterator

from rich.table import Table

from pipelines import storage
from pipelines.errors import MissingError, UserError, shorten
from pipelines.inference.answer_table import ANSWERS, OWN, TaskAnswers, by_test_set
from pipelines.inference.config import EvaluationsCompareConfig
from pipelines.inference.scoring.answers import Difference
from pipelines.inference.scoring.scores import paired_test
from pipelines.interface.page import Section, Tile, write_report
from pipelines.interface.terminal import print_table
from pipelines.runs.evaluations import EVALUATION

HEAD = ("task", "test set", "questions", "score", "first", "second", "difference", "95 % interval", "p")
NOTE = (
    "The difference is the first less the second. Its interval and p come from a paired bootstrap over clips; p is of "
    "each line alone, and of twenty lines one falls below 0.05 by chance."
)


def evaluations_compare(config: EvaluationsCompareConfig) -> list[Difference]:
    """Print the difference of each score of each task on each test set that both have; write it as a page.

    Raises:
        UserError: If there are not two, they have no test set in common, or their questions or references differ.
        MissingError: If a folder holds no evaluation.
    """
    if len(config.evaluations) != 2:
        raise UserError(f"evaluations={config.evaluations}: two are needed")
    first, second = config.evaluations
    found = [
        (part, one) for uris in _pairs(first, second) for part, other in _parts(*uris) for one in _compare(part, other)
    ]
    rows = [_row(part, one) for part, one in found]
    table = Table(*HEAD, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    print(f"first: {first}\nsecond: {second}\n")
    print_table(table)
    print(f"\n{NOTE}")
    if config.out:
        write_report(
            config.out,
            title="Two evaluations side by side",
            lead=f"First: {first}. Second: {second}.",
            tiles=[
                Tile("scores", str(len(found))),
                Tile("differences with p below 0.05", str(sum(one.p_value < 0.05 for _, one in found))),
            ],
            sections=[Section("Differences", NOTE, HEAD, rows)],
            footer="rates, accuracies and BLEU are fractions",
        )
        print(f"report: {config.out}")
    return [one for _, one in found]


def _pairs(first: str, second: str) -> Iterator[tuple[str, str]]:
    """Yield the evaluations to compare: the two folders', or those of two runs on the same splits."""
    ours, theirs = _evaluations(first), _evaluations(second)
    names = sorted(ours.keys() & theirs.keys())
    if not names:
        had = (f"{uri} has {', '.join(sorted(found))}" for uri, found in ((first, ours), (second, theirs)))
        raise UserError(f"no evaluation of the same splits: {'; '.join(had)}")
    yield from ((ours[name], theirs[name]) for name in names)


def _evaluations(uri: str) -> dict[str, str]:
    """Return splits -> folder of a run's evaluations; a folder of one evaluation alone has no name here.

    Raises:
        MissingError: If there is none.
    """
    if storage.file_exists(storage.join(uri, ANSWERS)):
        return {"": uri}
    folders = {
        name: storage.join(uri, EVALUATION, name) for name in storage.list_folders(storage.join(uri, EVALUATION))
    }
    found = {name: folder for name, folder in folders.items() if storage.file_exists(storage.join(folder, ANSWERS))}
    if not found:
        raise MissingError(f"{uri}: no evaluation there, nor a run with one ({ANSWERS} is missing); salmonn evaluate")
    return found


def _parts(first: str, second: str) -> Iterator[tuple[TaskAnswers, TaskAnswers]]:
    """Yield the rows of each task and test set that both evaluations have."""
    ours, theirs = ({(part.task, part.test_set): part for part in _read(uri)} for uri in (first, second))
    if not ours.keys() & theirs.keys():
        raise UserError(f"{first} and {second} have no task on the same test set in common")
    yield from ((part, theirs[key]) for key, part in ours.items() if key in theirs)


def _read(uri: str) -> Iterator[TaskAnswers]:
    with storage.open_parquet(storage.join(uri, ANSWERS)) as file:
        yield from by_test_set(file.read())


def _compare(first: TaskAnswers, second: TaskAnswers) -> tuple[Difference, ...]:
    ours, theirs = first.heard(OWN), second.heard(OWN)
    references = {(item.clip_id, item.question): sorted(item.references) for item in theirs}
    for item in ours:
        if references.get((item.clip_id, item.question), sorted(item.references)) != sorted(item.references):
            raise UserError(
                f"{first.task} on {first.test_set}: {shorten(item.question)!r} of clip {item.clip_id} has other "
                "references on either side; evaluate both on the same manifest"
            )
    return paired_test(first.task, ours, theirs)


def _row(part: TaskAnswers, one: Difference) -> list[str]:
    values = [f"{value:.3f}" for value in (one.ours, one.theirs)]
    interval = f"{one.low:+.3f} to {one.high:+.3f}"
    return [
        *(part.task, part.test_set, str(len(part.rows)), one.name),
        *(*values, f"{one.difference:+.3f}", interval, f"{one.p_value:.3f}"),
    ]
