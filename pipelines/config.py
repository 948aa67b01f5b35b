"""Typed configs from defaults < YAML < `key=value`, and the text that explains them.

Each config is a frozen dataclass beside what it configures. Under every field stands a docstring that begins with the
unit in brackets: `\"\"\"[seconds] Audio covered by one window.\"\"\"`. OmegaConf merges, converts and checks types.
"""

import ast
import inspect
import itertools
import textwrap
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from pipelines import storage

CONFIG_DIR = Path(__file__).parent / "configs"
ConfigT = TypeVar("ConfigT")


def load_config(config_type: type[ConfigT], arguments: Sequence[str | Mapping[str, Any]]) -> ConfigT:
    """Build a config from command-line arguments: YAML files (URIs or names in `pipelines/configs/`) and `key=value`.

    An argument may also be a mapping from keys, `outer.inner` for a nested one, to their values.

    Raises:
        ValueError: On an unknown key (naming the nearest known one), a value of the wrong type or a missing key.
        FileNotFoundError: If a YAML file does not exist.
    """
    schema = OmegaConf.structured(config_type)
    merged: Any = schema
    try:
        for argument in arguments:
            merged = OmegaConf.merge(merged, _keys_of(config_type, argument))
        config = OmegaConf.to_object(merged)
    except MissingMandatoryValue as error:
        raise ValueError(
            f"{error.full_key}=… is needed: {_documented(config_type).get(str(error.full_key), '')}"
        ) from None
    except (ConfigKeyError, ConfigAttributeError) as error:
        raise ValueError(f"unknown key {error.full_key}: {_first_line(error)}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{argument}: not YAML ({' '.join(str(error).split())})") from None
    except OmegaConfBaseException as error:
        raise ValueError(f"{error.full_key or 'config'}: {_first_line(error)}") from None
    return typing.cast(ConfigT, config)


def _keys_of(config_type: type, argument: str | Mapping[str, Any]) -> Any:
    if not isinstance(argument, str):
        keys = OmegaConf.create({})
        for key, value in argument.items():
            OmegaConf.update(keys, key, value)
        return keys
    if argument.startswith("-"):
        raise ValueError(f"{argument}: keys are written without dashes, key=value")
    key, equals, value = argument.partition("=")
    is_key = type_of_key(config_type, key.partition(".")[0]) is not None
    return _override(config_type, key, value) if equals and (is_key or not is_yaml(argument)) else _read_yaml(argument)


def is_yaml(uri: str) -> bool:
    """Tell whether a word names a YAML file, and not one that is shipped or a key."""
    return uri.partition("?")[0].endswith((".yaml", ".yml"))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _override(config_type: type, key: str, value: str) -> Any:
    """Parse `key=value`; a text field takes the value as it stands, so that a question may hold any character."""
    hint = type_of_key(config_type, key)
    if hint == list[str] and not value.startswith("["):
        value = f"[{value}]"
    if hint is str:
        update = OmegaConf.create({})
        OmegaConf.update(update, key, value.replace("${", "\\${"))
        return update
    return OmegaConf.from_dotlist([f"{key}={value}"])


def type_of_key(config_type: Any, key: str) -> Any:
    """Return the declared type of a key, `outer.inner` for a nested one; None if there is no such key."""
    for name in key.split("."):
        config_type = typing.get_type_hints(config_type).get(name) if is_dataclass(config_type) else None
    return config_type


def _read_yaml(argument: str) -> DictConfig:
    uri = argument if is_yaml(argument) else str(CONFIG_DIR / f"{argument}.yaml")
    if not storage.file_exists(uri):
        known = ", ".join(sorted(file.stem for file in CONFIG_DIR.glob("*.yaml")))
        raise FileNotFoundError(
            f"{argument}: neither key=value of a known key, nor a YAML file, nor a shipped config ({known})"
        )
    loaded = OmegaConf.create(storage.read_bytes(uri).decode())
    if not isinstance(loaded, DictConfig):
        raise ValueError(f"{uri}: holds no keys")
    return loaded


def to_yaml(config: Any) -> str:
    """Return a config as YAML text with every key resolved."""
    return str(OmegaConf.to_yaml(OmegaConf.structured(config)))


def save_config(config: Any, uri: str) -> None:
    """Write the resolved config beside an output."""
    storage.write_bytes(uri, to_yaml(config).encode())


def require_range(config: Any, keys: Sequence[str], *, low: float, high: float = float("inf")) -> None:
    """Check that numbers of a config lie between `low` and `high`, both included.

    Raises:
        ValueError: Naming the first key that does not.
    """
    for key in keys:
        if not low <= getattr(config, key) <= high:
            bound = f"{low:g} or more" if high == float("inf") else f"between {low:g} and {high:g}"
            raise ValueError(f"{key}={getattr(config, key)}: must be {bound}")


def first_difference(ours: Any, theirs: Any, prefix: str = "") -> str | None:
    """Name the first key in which two nested mappings differ and both values, or return None."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(ours.keys() | theirs.keys()):
            difference = first_difference(ours.get(key), theirs.get(key), f"{prefix}.{key}" if prefix else str(key))
            if difference:
                return difference
        return None
    return None if ours == theirs else f"{prefix} is {theirs!r} there and {ours!r} here"


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


def _documented(config_type: type) -> dict[str, str]:
    return {key.name: key.meaning for key in describe_keys(config_type)}


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
