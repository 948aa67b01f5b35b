"""What a sweep tries: every combination of listed values, and values drawn at random; a pure function of its keys.

Both are mappings from a config's keys, nested or dotted, to what each is tried with:

    grid:   {optim.lr: [1e-4, 3e-4]}                                        each of these
    random: {optim.lr: {low: 1e-5, high: 1e-3, log: true}, lora.rank: [4, 8]}   from the range, one of these
"""

import difflib
import itertools
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

import numpy as np

from pipelines.errors import UserError
from pipelines.interface.help import describe_keys, type_of_key

Values = dict[str, Any]
"""Key -> value of one trial."""
LOG_RATIO = 9.0
"""Listed values whose largest is so many times the smallest are far apart."""
RANGE = {"low", "high", "log"}
DIGITS = 4
"""Of drawn numbers, so that they can be read and typed again."""


def points_of_grid(grid: Mapping[str, Any], config_type: type) -> list[Values]:
    """Return every combination of the listed values, the last key's changing fastest; keys are in alphabetical order.

    Raises:
        UserError: If a key is unknown, or is not given a list of at least one value.
    """
    lists = _by_key(grid, config_type, "grid")
    for key, values in lists.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"grid.{key}={shown(values)}: must be a list of values to try")
    return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]


def draws(random: Mapping[str, Any], config_type: type, *, count: int, seed: int) -> list[Values]:
    """Return `count` draws of all keys. Those of a key depend on key and seed alone, and more of them begin alike.

    Raises:
        UserError: If a key is unknown, or is given neither a list of at least one value nor a range.
    """
    columns = {
        key: _draw_key(key, values, type_of_key(config_type, key), count=count, seed=seed)
        for key, values in _by_key(random, config_type, "random").items()
    }
    return [{key: column[number] for key, column in columns.items()} for number in range(count)]


def log_keys(grid: Mapping[str, Any], random: Mapping[str, Any], config_type: type) -> set[str]:
    """Return the keys that are read on a logarithmic axis: drawn from so, or listed with values far apart."""
    drawn, listed = _by_key(random, config_type, "random"), _by_key(grid, config_type, "grid")
    drawn_so = {key for key, values in drawn.items() if isinstance(values, Mapping) and values.get("log")}
    return drawn_so | {key for key, values in listed.items() if _are_far_apart(values)}


def _are_far_apart(values: Sequence[Any]) -> bool:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return len(numbers) == len(values) and min(numbers) > 0 and max(numbers) >= LOG_RATIO * min(numbers)


def shown(value: Any) -> str:
    """Return a value as it is typed on the command line; numbers are not rounded."""
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {shown(inner)}' for key, inner in value.items())}}}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _by_key(space: Mapping[str, Any], config_type: type, where: str) -> dict[str, Any]:
    """Return what each key is given, keys in alphabetical order."""
    found: dict[str, Any] = {}
    for key, values in _leaves(space, config_type, where):
        if key in found:
            raise UserError(f"{where}.{key} is given twice, once with dots and once nested")
        found[key] = values
    return dict(sorted(found.items()))


def _leaves(space: Mapping[str, Any], config_type: type, where: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each key of the config with what it is given; mappings up to it are its outer keys."""
    for name, value in space.items():
        key = f"{prefix}{name}"
        hint = type_of_key(config_type, key)
        if hint is None:
            near = difflib.get_close_matches(key, [known.name for known in describe_keys(config_type)], 1)
            raise UserError(f"{where}.{key}: unknown key" + "".join(f"; did you mean {name}?" for name in near))
        if is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise UserError(f"{where}.{key}: holds several keys; one of them is to be named")
            yield from _leaves(value, config_type, where, f"{key}.")
        else:
            yield key, value


def _draw_key(key: str, values: Any, hint: Any, *, count: int, seed: int) -> list[Any]:
    generator = np.random.Generator(np.random.PCG64([seed, zlib.crc32(key.encode())]))
    uniform: list[float] = generator.random(count).tolist()
    if isinstance(values, list) and values:
        return [values[int(draw * len(values))] for draw in uniform]
    if not isinstance(values, Mapping):
        raise UserError(f"random.{key}={shown(values)}: must be a list of choices or {{low: …, high: …, log: true}}")
    low, high, log = _range(key, values, hint)
    if hint is int:
        return [min(high, math.floor(_between(low, high + 1, draw, log=log))) for draw in uniform]
    return [min(high, max(low, float(f"{_between(low, high, draw, log=log):.{DIGITS}g}"))) for draw in uniform]


def _range(key: str, values: Mapping[str, Any], hint: Any) -> tuple[Any, Any, bool]:
    """Return a range's ends, and whether it is drawn from by its logarithm."""
    low, high, log = values.get("low"), values.get("high"), values.get("log", False)
    where = f"random.{key}={shown(dict(values))}"
    if values.keys() - RANGE or not isinstance(log, bool):
        raise UserError(f"{where}: a range has low, high and log: true or false")
    if hint not in (int, float):
        raise UserError(f"{where}: a range is for numbers; give a list of choices")
    for end in (low, high):
        if isinstance(end, bool) or not isinstance(end, int if hint is int else int | float):
            raise UserError(f"{where}: low and high must be {'whole ' if hint is int else ''}numbers")
    if not low < high or (log and low <= 0):  # type: ignore[operator]  # numbers, as just checked
        raise UserError(f"{where}: low must be below high{', and above 0 for a logarithm' if log else ''}")
    return low, high, log


def _between(low: float, high: float, draw: float, *, log: bool) -> float:
    if log:
        return math.exp(math.log(low) + draw * (math.log(high) - math.log(low)))
    return low + draw * (high - low)
