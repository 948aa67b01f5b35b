"""The page of a sweep: its table, scores against each key that was swept, and the curves of all trials."""

from collections.abc import Collection, Sequence
from typing import Any

from pipelines.interface.figures import Picture
from pipelines.interface.page import Section, Tile, write_report
from pipelines.interface.words import counted
from pipelines.training.sweep.figures import draw_scores_by_key, draw_trials
from pipelines.training.sweep.results import TrialResult, cells_of, columns_of, shown_score, swept_keys
from pipelines.training.sweep.space import shown
from pipelines.training.sweep.trial import WORST, Goal


def write_sweep_report(
    uri: str, results: Sequence[TrialResult], goal: Goal, *, log_keys: Collection[str], command: str
) -> None:
    """Write the page of trials, the best first; `log_keys` have a logarithmic axis, `command` runs them again."""
    endings = [result.ending for result in results]
    tiles = [Tile("trials", str(len(results)))]
    tiles += [Tile(ending, str(endings.count(ending))) for ending in dict.fromkeys(endings)]
    tiles.append(Tile("training seconds", f"{sum(result.training_seconds for result in results):.0f}"))
    sections = [_table(results, goal)]
    if finite := [result for result in results if result.score is not None and abs(result.score) < WORST]:
        finite.sort(key=lambda result: not result.has_ended)
        tiles.insert(0, Tile(f"{goal.metric} of {_name(finite[0])}", shown_score(finite[0].score)))
        sections = [_best(finite[0], goal), *sections, *_pictures(finite, goal, log_keys)]
    sections.append(Section("Run it again", f"{command} continues the sweep or says that all is done."))
    write_report(
        uri,
        title="Sweep",
        lead=f"{counted(len(results), 'trial')} over {', '.join(swept_keys(results))}, ranked by the "
        f"{'lowest' if goal.mode == 'min' else 'highest'} {goal.metric} of each.",
        tiles=tiles,
        sections=sections,
        footer="losses in nats per answer token; training seconds without validation, checkpoints and loading",
    )


def _best(best: TrialResult, goal: Goal) -> Section:
    keys = ", ".join(f"{key}={shown(value)}" for key, value in best.values.items())
    name, score = _name(best).capitalize(), shown_score(best.score)
    text = f"{name} with {keys}: {goal.metric} {score} at step {best.best_step}."
    return Section("Which was best", f"{text} Its run: {best.run}")


def _name(best: TrialResult) -> str:
    return f"trial {best.number}" + ("" if best.has_ended else f" ({best.ending})")


def _table(results: Sequence[TrialResult], goal: Goal) -> Section:
    keys = swept_keys(results)
    rows = [
        [cell.replace("stopped early", "stopped\N{NO-BREAK SPACE}early") for cell in cells_of(result, keys)]
        for result in results
    ]
    return Section("All trials", columns=columns_of(results, goal), rows=rows)


def _pictures(finite: Sequence[TrialResult], goal: Goal, log_keys: Collection[str]) -> list[Section]:
    values = {key: [_on_axis(result.values[key]) for result in finite] for key in swept_keys(finite)}
    by_key = draw_scores_by_key(
        values,
        [result.score or 0.0 for result in finite],
        measure=goal.metric,
        cut=[result.ending == "stopped early" for result in finite],
        log_keys=log_keys,
        caption="Each trial at its best line of metrics, the best trial in colour; crosses were stopped early.",
    )
    return [
        Section("Against each key", pictures=[by_key]),
        Section("How they learnt", pictures=[_curves(finite, goal)]),
    ]


def _on_axis(value: Any) -> float | str:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else shown(value)


def _curves(results: Sequence[TrialResult], goal: Goal) -> Picture:
    names = {result.number: _short_name(result) for result in results}
    return draw_trials(
        {
            names[result.number]: [(step, score) for step, score in result.scores if abs(score) < WORST]
            for result in results
        },
        measure=goal.metric,
        cut={names[result.number] for result in results if result.ending == "stopped early"},
        caption="The best trial is drawn thick; crosses are where trials were stopped early.",
    )


def _short_name(result: TrialResult) -> str:
    keys = ", ".join(f"{key.rpartition('.')[2]} {shown(value)}" for key, value in result.values.items())
    return f"trial {result.number}: {keys}"
