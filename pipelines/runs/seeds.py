"""Runs that differ by their seed alone, and how far their numbers lie apart."""

import math
import statistics
from collections.abc import Mapping, Sequence

PLACE = frozenset({"seed", "run", "runs", "name"})
"""Keys in which runs of one kind differ: what is drawn, and where a run lies."""
COLUMNS = ("runs that differ by their seed alone", "number", "mean", "±", "runs")


def group_by_seed(configs: Mapping[str, Mapping[str, str]]) -> list[list[str]]:
    """Return the names of runs, two or more each, whose keys are the same but for those of `PLACE`."""
    groups: dict[frozenset[tuple[str, str]], list[str]] = {}
    for name, config in configs.items():
        kind = frozenset((key, value) for key, value in config.items() if key not in PLACE)
        groups.setdefault(kind, []).append(name)
    return [names for names in groups.values() if len({configs[name].get("seed") for name in names}) > 1]


def spread_rows(groups: Sequence[Sequence[str]], numbers: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """Return rows under `COLUMNS`: the mean of each number that all runs of a group have, and its standard deviation.

    The deviation is that of a sample, over n - 1. Numbers that are not finite in one of the runs have neither.
    """
    rows = []
    for names in groups:
        shared = [number for number in numbers[names[0]] if all(number in numbers[name] for name in names)]
        for place, number in enumerate(shared):
            values = [numbers[name][number] for name in names]
            is_known = all(map(math.isfinite, values))
            mean = f"{statistics.mean(values):.3f}" if is_known else "—"
            spread = f"{statistics.stdev(values):.3f}" if is_known else "—"
            rows.append(["" if place else ", ".join(names), number, mean, spread, str(len(names))])
    return rows
