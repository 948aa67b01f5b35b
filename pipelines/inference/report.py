"""What an evaluation leaves: the answers, and report.md and scores.json, equal byte by byte for equal answers."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import pyarrow as pa
from rich.table import Table

from pipelines import storage
from pipelines.inference.answer_table import ANSWERS
from pipelines.inference.answers import DecodeSettings
from pipelines.inference.config import EvaluateConfig
from pipelines.inference.scoring.answers import Score, TaskScores
from pipelines.inference.scoring.paper import NOTHING, PaperRow, paper_table, to_json, to_markdown
from pipelines.interface.config import save_config
from pipelines.interface.markdown import markdown_table
from pipelines.interface.terminal import print_table
from pipelines.interface.words import counted


@dataclass(frozen=True)
class TaskReport:
    """A task on a test set: scores with each question's own clip and, where asked for, with silence or another clip."""

    own: TaskScores
    silence: TaskScores | None
    other: TaskScores | None

    def rows(self) -> Iterator[tuple[Score, float | None, float | None]]:
        """Yield each score beside its value with silence and with another clip."""
        for score in self.own.scores:
            silence, other = (heard.value(score.name) if heard else None for heard in (self.silence, self.other))
            yield score, silence, other


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """All that was scored, and of what."""

    run: str
    step: int
    splits: tuple[str, ...]
    settings: DecodeSettings
    questions: int
    examples: int
    missing: int
    """Examples that were left out because the cache lacks their clips."""
    tasks: tuple[TaskReport, ...]

    @property
    def checks_heard(self) -> bool:
        return any(task.silence for task in self.tasks)

    def paper(self) -> list[PaperRow]:
        """Return every task's scores beside the paper's."""
        return paper_table(task.own for task in self.tasks)


def write_report(out: str, config: EvaluateConfig, report: EvaluationReport, answers: pa.Table) -> None:
    """Write an evaluation's files."""
    scores = {**asdict(report), "paper": to_json(report.paper())}
    storage.write_table(storage.join(out, ANSWERS), answers)
    storage.write_bytes(storage.join(out, "report.md"), markdown(report).encode())
    storage.write_bytes(storage.join(out, "scores.json"), json.dumps(scores, indent=2).encode())
    save_config(config, storage.join(out, "evaluate.yaml"))


def markdown(report: EvaluationReport) -> str:
    """Return the report as a page of Markdown."""
    parts = [
        f"# Scores of {report.run}, step {report.step}\n",
        f"{describe(report)}\n",
        "## All scores\n",
        markdown_table(*score_table(report)),
        *(f"{line}\n" for line in absent(report)),
        "## Beside the paper\n",
        to_markdown(report.paper()),
        "".join(f"- {note}\n" for note in _notes(report)),
    ]
    return "\n".join(parts)


def describe(report: EvaluationReport) -> str:
    """Return in a sentence what was asked, and how answers were decoded."""
    settings = report.settings
    return (
        f"Splits {', '.join(report.splits) or 'all'}; {counted(report.questions, 'question')} from "
        f"{counted(report.examples, 'example')}"
        + (f", {report.missing} more left out for want of features" if report.missing else "")
        + f"; beams {settings.num_beams}, at most {settings.max_new_tokens} tokens, LoRA × {settings.lora_scaling:g}"
        + (f", decoded by {settings.engine}." if settings.engine else ".")
    )


def score_table(report: EvaluationReport) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the table of scores, a row for each score of a task on a test set."""
    head = ["task", "test set", "clips", "questions", "references", "score", "value", "95 % interval"]
    head += ["silence", "other clip"] if report.checks_heard else []
    rows = []
    for task in report.tasks:
        own = task.own
        for score, silence, other in task.rows():
            interval = f"{_value(score.low)} – {_value(score.high)}" if score.low is not None else NOTHING
            cells = [own.task, own.test_set, str(own.clips), str(own.examples), str(own.references)]
            cells += [score.name, _value(score.value), interval]
            rows.append(cells + ([_value(silence), _value(other)] if report.checks_heard else []))
    return head, rows


def absent(report: EvaluationReport) -> Iterator[str]:
    """Yield a sentence for each reason why scores have no value."""
    names: dict[str, list[str]] = {}
    for score in (score for task in report.tasks for score in task.own.scores):
        if score.value is None:
            names.setdefault("; ".join(score.notes) or "no answers", []).append(score.name)
    yield from (f"No {', '.join(dict.fromkeys(found))}: {why}." for why, found in names.items())


def print_scores(report: EvaluationReport) -> None:
    """Print the scores as a table, and why some have no value."""
    head, rows = score_table(report)
    shown = [place for place, name in enumerate(head) if name not in ("clips", "references")]
    table = Table(*(head[place] for place in shown), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(row[place] for place in shown))
    print_table(table)
    for line in absent(report):
        print(line)


def _notes(report: EvaluationReport) -> Iterator[str]:
    for own in (task.own for task in report.tasks):
        for score in own.scores:
            yield f"{own.task} on {own.test_set}, {score.name}: {'; '.join([f'`{score.signature}`', *score.notes])}"
        yield from (f"{own.task} on {own.test_set}: {note}" for note in own.notes)


def _value(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"
