"""The page of a sweep: its table, scores against each key that was swept, and the curves of all trials."""

from collections.abc import Collection, Sequence
from typing import Any

from pipelines.report import Picture, Section, Tile, draw_scores_by_key, draw_trials, write_report
from pipelines.sweep_results import TrialResult, cells_of, columns_of, shown, shown_score, swept_keys
from pipelines.sweep_trial import WORST, Goal

LOG_RATIO = 9.0
"""A key whose values lie so far apart is drawn on a logarithmic axis."""


def write_sweep_report(
    uri: str, results: Sequence[TrialResult], goal: Goal, *, log_keys: Collection[str], command: str
) -> None:
    """Write the page of trials, the best first; `log_keys` were drawn by their logarithm, `command` runs them again."""
    endings = [result.ending for result in results]
    tiles = [Tile("trials", str(len(results)))]
    tiles += [Tile(ending, str(endings.count(ending))) for ending in dict.fromkeys(endings)]
    tiles.append(Tile("training seconds", f"{sum(result.training_seconds for result in results):.0f}"))
    sections = [_table(results, goal)]
    if scored := [result for result in results if result.score is not None]:
        best = scored[0]
        tiles.insert(0, Tile(f"{goal.metric} of trial {best.number}", shown_score(best.score)))
        sections = [_best(best, goal), *sections, *_pictures(scored, goal, log_keys)]
    sections.append(Section("Run it again", f"{command} continues the sweep or says that all is done."))
    write_report(
        uri,
        title="Sweep",
        lead=f"{len(results)} trials over {', '.join(swept_keys(results))}, ranked by the "
        f"{'lowest' if goal.mode == 'min' else 'highest'} {goal.metric} of each.",
        tiles=tiles,
        sections=sections,
        footer="losses in nats per answer token; training seconds without validation, checkpoints and loading",
    )


def _best(best: TrialResult, goal: Goal) -> Section:
    keys = ", ".join(f"{key}={shown(value)}" for key, value in best.values.items())
    text = f"Trial {best.number} with {keys}: {goal.metric} {shown_score(best.score)} at step {best.best_step}."
    return Section("Which was best", f"{text} Its run: {best.run}")


def _table(results: Sequence[TrialResult], goal: Goal) -> Section:
    keys = swept_keys(results)
    return Section("All trials", columns=columns_of(results, goal), rows=[cells_of(result, keys) for result in results])


def _pictures(scored: Sequence[TrialResult], goal: Goal, log_keys: Collection[str]) -> list[Section]:
    """Return pictures of the trials that have a score, those whose score is not finite left out."""
    finite = [result for result in scored if abs(result.score or 0.0) < WORST]
    if not finite:
        return []
    points = {key: [(result.values[key], result.score or 0.0) for result in finite] for key in swept_keys(finite)}
    logarithmic = {key for key, pairs in points.items() if key in log_keys or _spread([value for value, _ in pairs])}
    by_key = draw_scores_by_key(
        points, measure=goal.metric, log_keys=logarithmic, best=0, caption="Each trial at its best line of metrics."
    )
    return [
        Section("Against each key", pictures=[by_key]),
        Section("How they learnt", pictures=[_curves(finite, goal)]),
    ]


def _spread(values: Sequence[Any]) -> bool:
    numbers = [value for value in values if isinstance(value, int | float)]
    return len(numbers) == len(values) and min(numbers) > 0 and max(numbers) >= LOG_RATIO * min(numbers)


def _curves(results: Sequence[TrialResult], goal: Goal) -> Picture:
    names = {result.number: f"trial {result.number}" for result in results}
    return draw_trials(
        {
            names[result.number]: [(step, score) for step, score in result.scores if abs(score) < WORST]
            for result in results
        },
        measure=goal.metric,
        cut={names[result.number] for result in results if result.ending == "stopped early"},
        caption="The best trial is drawn thick; crosses are trials that were stopped early.",
    )
