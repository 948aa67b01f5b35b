"""The page that a run leaves when its training ends: what was forecast and what came, by its lines of metrics."""

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipelines import storage
from pipelines.cache.cost import EncodingCost, read_encoding_cost
from pipelines.errors import UserError
from pipelines.interface.config import load_config, read_saved_config
from pipelines.interface.figures import Picture
from pipelines.interface.help import changed_keys
from pipelines.interface.page import Section, Tile, write_report
from pipelines.interface.version import written_now
from pipelines.interface.words import counted
from pipelines.runs.config import RunsReportConfig
from pipelines.runs.evaluations import EVALUATION, PAGE, Evaluation, evaluations_of
from pipelines.runs.folder import REPORT
from pipelines.runs.metrics import STEP_PARTS, WAIT, read_metrics
from pipelines.runs.scores import ScoreLine, read_scores
from pipelines.training.config import TrainConfig
from pipelines.training.monitoring.figures import draw_losses, draw_scores, draw_step_parts

MOST_SPANS, MOST_ALARMS = 120, 20
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What the lines of a run add up to; times are its first worker's."""

    steps: int
    examples: int
    nbytes: float
    seconds_by_part: dict[str, float]
    peak_memory_mb: float

    @classmethod
    def of(cls, lines: Sequence[Line]) -> "Outcome":
        """Add up lines, one at least."""
        parts: dict[str, float] = {}
        for line in lines:
            for part, seconds in line["seconds_by_part"].items():
                parts[part] = parts.get(part, 0.0) + seconds
        return cls(
            steps=lines[-1]["step"],
            examples=sum(sum(line["examples_by_task"].values()) for line in lines),
            nbytes=sum(1e6 * line["megabytes_per_second"] * _step_seconds(line) for line in lines),
            seconds_by_part=parts,
            peak_memory_mb=max(line["peak_memory_mb"] for line in lines),
        )

    @property
    def step_seconds(self) -> float:
        """[seconds] Of all steps together."""
        return sum(self.seconds_by_part[part] for part in STEP_PARTS)

    @property
    def seconds(self) -> float:
        """With what is done between the steps."""
        return sum(self.seconds_by_part.values())


def _step_seconds(line: Line) -> float:
    return sum(float(line["seconds_by_part"][part]) for part in STEP_PARTS)


def write_train_report(config: TrainConfig, lines: Sequence[Line], *, ended: str = "") -> None:
    """Write <run>/report.html from the run's lines of metrics; `ended` says how it ended before its last step."""
    outcome, cost = Outcome.of(lines), read_encoding_cost(config.cache)
    name = config.run.partition("?")[0].rpartition("/")[2]
    lead = f"{outcome.steps:,} of {config.steps:,} steps, {counted(config.workers, 'worker')}. {written_now()}"
    held_out = [line for line in lines if math.isfinite(line.get("valid_loss", math.nan))]
    sections = [
        _forecast(config, outcome),
        _learning(lines),
        *([_held_out(held_out)] if held_out else []),
        *([_scores(scores)] if (scores := read_scores(config.run)) else []),
        *(section for found in evaluations_of(config.run) for section in _evaluation(found)),
        *([_alarms(lines)] if any("alarms" in line for line in lines) else []),
        _time(config, lines, outcome),
        *([_saving(config, outcome, cost)] if cost else []),
        _settings(config),
    ]
    write_report(
        storage.join(config.run, REPORT),
        title=f"Training: {name}",
        lead=lead + (f" Ended early: {ended}" if outcome.steps < config.steps and ended else ""),
        tiles=_tiles(config, lines, held_out, outcome),
        sections=sections,
        footer=shlex.join(sys.argv),
    )


def runs_report(config: RunsReportConfig) -> None:
    """Write the page of a run anew, from what its folder holds now.

    Raises:
        MissingError: If there is no run.
        UserError: If it has no line of metrics, or a file of it is damaged.
    """
    keys = read_saved_config(storage.join(config.run, "config.yaml"))
    trained = replace(load_config(TrainConfig, [keys]), run=config.run)
    lines = read_metrics(config.run)
    if not lines:
        raise UserError(f"{config.run}: has no line of metrics yet, of which its page is made")
    write_train_report(trained, lines)
    print(f"report: {storage.join(config.run, REPORT)}")


def _tiles(config: TrainConfig, lines: Sequence[Line], held_out: Sequence[Line], outcome: Outcome) -> list[Tile]:
    tiles = [Tile(f"steps of {config.steps:,}", f"{outcome.steps:,}"), Tile("loss", f"{lines[-1]['loss']:.3f}")]
    if held_out:
        best = min(held_out, key=lambda line: line["valid_loss"])
        tiles.append(Tile(f"lowest held-out loss, at step {best['step']:,}", f"{best['valid_loss']:.3f}"))
    return [
        *tiles,
        Tile("examples", f"{outcome.examples:,}"),
        Tile("examples/s", f"{outcome.examples / outcome.step_seconds:,.3g}"),
        Tile("device hours", f"{_hours(config, outcome.seconds):,.3f}"),
        *_money(config, outcome),
        Tile("waiting for data", f"{outcome.seconds_by_part[WAIT] / outcome.step_seconds:.1%}"),
        Tile("alarms", f"{sum(len(line.get('alarms', ())) for line in lines)}"),
    ]


def _money(config: TrainConfig, outcome: Outcome) -> list[Tile]:
    if not config.price_per_hour:
        return []
    money = _hours(config, outcome.seconds) * config.price_per_hour
    return [Tile(f"money at {config.price_per_hour:g} a device hour", f"{money:,.2f}")]


def _hours(config: TrainConfig, seconds: float) -> float:
    """Return the hours of all workers' devices."""
    return seconds * config.workers / 3600


def _forecast(config: TrainConfig, outcome: Outcome) -> Section:
    forecast, seconds = config.forecast_step_seconds, outcome.step_seconds / outcome.steps
    examples = config.batch_examples
    rows = [
        _compared("seconds per step", forecast, seconds),
        _compared("examples per second", forecast and examples / forecast, examples / seconds),
        _compared("device hours of the steps", *(_hours(config, outcome.steps * each) for each in (forecast, seconds))),
    ]
    besides = [
        ("MB read per second, all workers", f"{outcome.nbytes / 1e6 / outcome.step_seconds:,.4g}"),
        ("of the steps' time waiting for data", f"{outcome.seconds_by_part[WAIT] / outcome.step_seconds:.1%}"),
        ("MB of memory at the peak, first worker", f"{outcome.peak_memory_mb:,.0f}"),
    ]
    rows += [[name, "", value, ""] for name, value in besides]
    if forecast:
        return Section("Forecast and outcome", "", ("", "forecast", "came", "difference"), rows)
    text = "Nothing was forecast: salmonn plan train prints the key forecast_step_seconds."
    return Section("Outcome", text, ("", "came"), [[name, came] for name, _, came, _ in rows])


def _compared(name: str, forecast: float, came: float) -> list[str]:
    difference = f"{came / forecast - 1:+.0%}" if forecast else ""
    return [name, f"{forecast:,.4g}" if forecast else "", f"{came:,.4g}", difference]


def _learning(lines: Sequence[Line]) -> Section:
    caption = "While learning, with dropout on; faint: line by line. Dashed: alarms, by the numbers of the table below."
    return Section("How it learnt", pictures=[draw_losses(lines, prefix="", caption=caption)])


def _alarms(lines: Sequence[Line]) -> Section:
    ringing = enumerate((line for line in lines if "alarms" in line), 1)
    rows = [[f"{number}", f"{line['step']:,}", alarm] for number, line in ringing for alarm in line["alarms"]]
    text = f"The first {MOST_ALARMS} of {len(rows)}." if len(rows) > MOST_ALARMS else ""
    return Section("Alarms", text, ("", "step", ""), rows[:MOST_ALARMS])


def _held_out(lines: Sequence[Line]) -> Section:
    picture = draw_losses(lines, prefix="valid_", caption="On held-out examples, each task asked its first question.")
    return Section("How it did on held-out examples", pictures=[picture])


def _scores(lines: Sequence[ScoreLine]) -> Section:
    newest = lines[-1].step
    rows = [[line.task, line.test_set, line.score, f"{line.value:.3f}"] for line in lines if line.step == newest]
    caption = "The first score of each task, on held-out questions that are answered greedily."
    picture = draw_scores(lines, caption=caption)
    text = f"The table holds all scores of step {newest:,}."
    return Section("What its answers scored", text, ("task", "test set", "score", "value"), rows, [picture])


def _evaluation(found: Evaluation) -> list[Section]:
    scores = [[*name, f"{value:.3f}"] for name, value in found.scores.items()]
    links = [("All answers", f"{EVALUATION}/{found.splits}/{PAGE}")] if found.has_page else []
    columns = ("test set", "task", "score", "value")
    return [
        Section(f"Evaluation on {found.splits}", "By salmonn evaluate.", columns, scores, links=links),
        Section(
            f"Some of its answers on {found.splits}", "", ("task", "question", "reference", "answer"), found.answers
        ),
    ]


def _time(config: TrainConfig, lines: Sequence[Line], outcome: Outcome) -> Section:
    rows = [
        [part.replace("_", " "), f"{seconds:,.1f}", f"{seconds / outcome.seconds:.1%}"]
        for part, seconds in sorted(outcome.seconds_by_part.items(), key=lambda part: -part[1])
    ]
    text = "Of the first worker; its sum over the workers includes the wait for the slowest of them."
    return Section("Where the time went", text, ("", "seconds", "share"), rows, [_draw_time(config, lines)])


def _draw_time(config: TrainConfig, lines: Sequence[Line]) -> Picture:
    spans = [span.tolist() for span in np.array_split(np.arange(len(lines)), min(len(lines), MOST_SPANS))]
    ends = np.array([lines[span[-1]]["step"] for span in spans], np.float64)
    steps = np.diff(ends, prepend=0.0)
    seconds = {
        part.replace("_", " "): np.array([sum(lines[i]["seconds_by_part"][part] for i in span) for span in spans])
        / steps
        for part in STEP_PARTS
    }
    caption = "What a step's time was made of, over the run."
    return draw_step_parts(ends, seconds, expected=config.forecast_step_seconds or None, caption=caption)


def _saving(config: TrainConfig, outcome: Outcome, cost: EncodingCost) -> Section:
    online, once = cost.online_hours(outcome.examples), cost.extract_hours(cost.clips)
    training, paid_after = _hours(config, outcome.seconds), once * 3600 / cost.encode_seconds
    rows = [
        [name, f"{encoding:,.4g}", f"{training:,.4g}", f"{encoding + training:,.4g}"]
        for name, encoding in (("encoders in every step", online), (f"this cache, its {cost.clips:,} clips once", once))
    ]
    text = (
        f"With the encoders in every step the run would take {1 + online / training:.2f} times as long. The cache "
        f"has paid for itself after {paid_after:,.0f} examples, whichever runs learn them; this one learnt "
        f"{outcome.examples:,}. Its jobs recorded {cost.encode_seconds:.3g} s of encoding per clip ({cost.devices})."
    )
    columns = ("device hours", "encoding", "training", "both")
    return Section("What the cache saved", text, columns, rows)


def _settings(config: TrainConfig) -> Section:
    rows = [[key.name, value, key.default, key.meaning] for key, value in changed_keys(config)]
    return Section("Keys that are not at their defaults", columns=("key", "value", "default", "meaning"), rows=rows)
