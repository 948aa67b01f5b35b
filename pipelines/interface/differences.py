"""Where two nested mappings first differ."""

from typing import Any


def first_difference(ours: Any, theirs: Any, prefix: str = "") -> str | None:
    """Name the first key in which two nested mappings differ and both values, or return None."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(ours.keys() | theirs.keys()):
            difference = first_difference(ours.get(key), theirs.get(key), f"{prefix}.{key}" if prefix else str(key))
            if difference:
                return difference
        return None
    return None if ours == theirs else f"{prefix} is {theirs!r} there and {ours!r} here"
