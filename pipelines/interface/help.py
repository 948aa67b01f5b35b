"""What a config's keys are: their types, units, defaults and meanings."""

import ast
import inspect
import itertools
import textwrap
import typing
from dataclasses import dataclass, fields, is_dataclass
from functools import reduce
from typing import Any, Literal

from omegaconf import OmegaConf


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


def describe_keys(config_type: type, prefix: str = "") -> list[Key]:
    """List every key of a config with type, default, unit and meaning, nested ones as `outer.inner`."""
    keys: list[Key] = []
    docs = _field_docs(config_type)
    hints = typing.get_type_hints(config_type)
    schema = OmegaConf.structured(config_type)
    for field in fields(config_type):
        name, hint = prefix + field.name, hints[field.name]
        if is_dataclass(hint):
            keys += describe_keys(typing.cast(type, hint), f"{name}.")
            continue
        unit, _, meaning = docs.get(field.name, "").removeprefix("[").partition("]")
        missing = OmegaConf.is_missing(schema, field.name)
        default = "needed" if missing else _show(OmegaConf.to_container(schema)[field.name])  # type: ignore[index, call-overload]
        keys.append(Key(name, _type_name(hint), default, unit, meaning.strip()))
    return keys


def changed_keys(config: Any) -> list[tuple[Key, str]]:
    """List the keys whose values are not the defaults, each with its value as it would be written."""
    values = ((key, _show(reduce(getattr, key.name.split("."), config))) for key in describe_keys(type(config)))
    return [(key, value) for key, value in values if value != key.default]


def _show(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(map(str, value)) + "]"
    return "''" if value == "" else str(value)


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "|".join(map(str, typing.get_args(hint)))
    return getattr(hint, "__name__", str(hint)) if not typing.get_args(hint) else str(hint)


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
