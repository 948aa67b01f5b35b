"""Typed configs from defaults < YAML < `key=value`, and the text that explains them.

Each config is a frozen dataclass beside what it configures. Under every field stands a docstring that begins with the
unit in brackets: `\"\"\"[seconds] Audio covered by one window.\"\"\"`. OmegaConf merges, converts and checks types.
"""

import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from pipelines import storage
from pipelines.errors import MissingError, UserError
from pipelines.interface.help import describe_keys, type_of_key

ConfigT = TypeVar("ConfigT")


def load_config(config_type: type[ConfigT], arguments: Sequence[str | Mapping[str, Any]]) -> ConfigT:
    """Build a config from command-line arguments: YAML files and `key=value`.

    A YAML file is given by its URI, or by its name where `config_type.SHIPPED` has files by their names.

    An argument may also be a mapping from keys, `outer.inner` for a nested one, to their values.

    Raises:
        UserError: On an unknown key (naming the nearest known one), a value of the wrong type or a missing key.
        MissingError: If a YAML file does not exist.
    """
    schema = OmegaConf.structured(config_type)
    merged: Any = schema
    try:
        for argument in arguments:
            merged = OmegaConf.merge(merged, _keys_of(config_type, argument))
        config = OmegaConf.to_object(merged)
    except MissingMandatoryValue as error:
        raise UserError(
            f"{error.full_key}=… is needed: {_documented(config_type).get(str(error.full_key), '')}"
        ) from None
    except (ConfigKeyError, ConfigAttributeError) as error:
        raise UserError(f"unknown key {error.full_key}: {_first_line(error)}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{argument}: not YAML ({' '.join(str(error).split())})") from None
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key or 'config'}: {_first_line(error)}") from None
    return typing.cast(ConfigT, config)


def _keys_of(config_type: type, argument: str | Mapping[str, Any]) -> Any:
    if not isinstance(argument, str):
        keys = OmegaConf.create({})
        for key, value in argument.items():
            OmegaConf.update(keys, key, value)
        return keys
    if argument.startswith("-"):
        raise UserError(f"{argument}: keys are written without dashes, key=value")
    key, equals, value = argument.partition("=")
    is_key = type_of_key(config_type, key.partition(".")[0]) is not None
    return (
        _override(config_type, key, value)
        if equals and (is_key or not is_yaml(argument))
        else _read_yaml(config_type, argument)
    )


def is_yaml(uri: str) -> bool:
    """Tell whether a word names a YAML file, and not one that is shipped or a key."""
    return uri.partition("?")[0].endswith((".yaml", ".yml"))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _override(config_type: type, key: str, value: str) -> Any:
    """Parse `key=value`; a text field takes the value as it stands, so that a question may hold any character."""
    hint = type_of_key(config_type, key)
    if is_dataclass(hint):
        raise UserError(
            f"{key}={value}: {key} has several keys; give one of them, such as {key}.{fields(hint)[0].name}=…"
        )
    if hint == list[str] and not value.startswith("["):
        value = f"[{value}]"
    if hint is str:
        update = OmegaConf.create({})
        OmegaConf.update(update, key, value.replace("${", "\\${"))
        return update
    return OmegaConf.from_dotlist([f"{key}={value}"])


def _read_yaml(config_type: type, argument: str) -> DictConfig:
    shipped: Mapping[str, Path] = getattr(config_type, "SHIPPED", {})
    uri = argument if is_yaml(argument) else str(shipped.get(argument, argument))
    if not is_yaml(uri) or not storage.file_exists(uri):
        known = f", nor a shipped config ({', '.join(shipped)})" if shipped else ""
        raise MissingError(f"{argument}: neither key=value of a known key, nor a YAML file{known}")
    loaded = OmegaConf.create(storage.read_bytes(uri).decode())
    if not isinstance(loaded, DictConfig):
        raise UserError(f"{uri}: holds no keys")
    return loaded


def read_saved_config(uri: str) -> dict[str, Any]:
    """Return the keys of a config that was saved beside an output.

    Raises:
        UserError: If the file is damaged.
    """
    try:
        content = yaml.safe_load(storage.read_bytes(uri)) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{uri}: damaged, not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise UserError(f"{uri}: damaged, holds no keys")
    return content


def to_yaml(config: Any) -> str:
    """Return a config as YAML text with every key resolved."""
    return str(OmegaConf.to_yaml(OmegaConf.structured(config)))


def save_config(config: Any, uri: str) -> None:
    """Write the resolved config beside an output."""
    storage.write_bytes(uri, to_yaml(config).encode())


def require_range(config: Any, keys: Sequence[str], *, low: float, high: float = float("inf")) -> None:
    """Check that numbers of a config are between `low` and `high`, both included.

    Raises:
        UserError: Naming the first key that does not.
    """
    for key in keys:
        if not low <= getattr(config, key) <= high:
            bound = f"{low:g} or more" if high == float("inf") else f"between {low:g} and {high:g}"
            raise UserError(f"{key}={getattr(config, key)}: must be {bound}")


def _documented(config_type: type) -> dict[str, str]:
    return {key.name: key.meaning for key in describe_keys(config_type)}
