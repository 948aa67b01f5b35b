"""What a config's keys are: their types, units, defaults and meanings."""

import ast
import inspect
import itertools
import re
import textwrap
import typing
from dataclasses import dataclass, fields, is_dataclass
from functools import reduce
from typing import Any, Literal

from omegaconf import OmegaConf

Change = Literal["", "free", "grows"]
"""Whether a key may change when what it made is continued: not at all, freely, or to a larger number."""
CHANGE = "change"
"""Name of that in a field's metadata."""


def type_of_key(config_type: Any, key: str) -> Any:
    """Return the declared type of a key, `outer.inner` for a nested one; None if there is no such key."""
    for name in key.split("."):
        config_type = typing.get_type_hints(config_type).get(name) if is_dataclass(config_type) else None
    return config_type


@dataclass(frozen=True)
class Key:
    """One line of `salmonn VERB --help`."""

    name: str
    type: str
    default: str
    unit: str
    meaning: str
    change: Change = ""


def describe_keys(config_type: type, prefix: str = "", change: Change = "") -> list[Key]:
    """List every key of a config with type, default, unit and meaning, nested ones as `outer.inner`."""
    keys: list[Key] = []
    docs = _field_docs(config_type)
    hints = typing.get_type_hints(config_type)
    schema = OmegaConf.structured(config_type)
    for field in fields(config_type):
        name, hint = prefix + field.name, hints[field.name]
        may = field.metadata.get(CHANGE, change)
        if is_dataclass(hint):
            keys += describe_keys(typing.cast(type, hint), f"{name}.", may)
            continue
        unit, _, meaning = docs.get(field.name, "").removeprefix("[").partition("]")
        missing = OmegaConf.is_missing(schema, field.name)
        default = "needed" if missing else _show(OmegaConf.to_container(schema)[field.name])  # type: ignore[index, call-overload]
        keys.append(Key(name, _type_name(hint), default, unit, meaning.strip(), may))
    return keys


def changed_keys(config: Any) -> list[tuple[Key, str]]:
    """List the keys whose values are not the defaults, each with its value as it would be written."""
    values = ((key, _show(reduce(getattr, key.name.split("."), config))) for key in describe_keys(type(config)))
    return [(key, value) for key, value in values if value != key.default]


def _show(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(map(str, value)) + "]"
    return "''" if value == "" else str(value)


_MODULE = re.compile(r"\b(\w+\.)+(?=\w)")


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "|".join(map(str, typing.get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else _MODULE.sub("", str(hint))


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def name_kind(hint: Any) -> str:
    """Say in words what a key of this type holds, such as `a whole number` or `one of float16, int8`."""
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    if typing.get_origin(hint) is list:
        return "a list, [one,two]"
    return _KINDS.get(hint, "a mapping of keys" if is_dataclass(hint) else _type_name(hint))


def _field_docs(config_type: type) -> dict[str, str]:
    """Return the docstring under each field; Python keeps none at run time, so they are read from the source."""
    docs: dict[str, str] = {}
    for base in reversed(config_type.__mro__[:-1]):
        body = typing.cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]).body
        for field, below in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                match below:
                    case ast.Expr(ast.Constant(str(text))):
                        docs[field.target.id] = " ".join(text.split())
    return docs
