"""Typed configs from defaults < YAML < `key=value`, and the text that explains them.

Each config is a frozen dataclass beside what it configures. Under every field stands a docstring that begins with the
unit in brackets: `\"\"\"[seconds] Audio covered by one window.\"\"\"`. OmegaConf merges, converts and checks types.
"""

import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from pipelines import storage
from pipelines.errors import MissingError, UserError, shorten
from pipelines.interface.help import describe_keys, name_kind, type_of_key

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
            merged = OmegaConf.merge(merged, _keys_of(config_type, argument, arguments))
        config = OmegaConf.to_object(merged)
    except MissingMandatoryValue as error:
        raise UserError(
            f"{error.full_key}=… is needed: {_documented(config_type).get(str(error.full_key), '')}"
        ) from None
    except (ConfigKeyError, ConfigAttributeError) as error:
        place = f"{argument}: " if isinstance(argument, str) and is_yaml(argument) else ""
        raise UserError(f"{place}unknown key {error.full_key}{_nearest(config_type, str(error.full_key))}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{argument}: not YAML ({describe_yaml_error(error)})") from None
    except OmegaConfBaseException as error:
        raise UserError(_wrong_value(config_type, argument, error)) from None
    return typing.cast(ConfigT, config)


def describe_yaml_error(error: Exception) -> str:
    """Return in one line what is wrong and where, without PyYAML's names for a text that it was given."""
    return re.sub(r'\s+in "<\w+ string>"', "", " ".join(str(error).split()))


def _wrong_value(config_type: type, argument: str | Mapping[str, Any], error: OmegaConfBaseException) -> str:
    """Say in our words what OmegaConf says in its classes' names: which key must be what."""
    key = str(error.full_key or "").partition("[")[0]
    hint = type_of_key(config_type, key)
    if isinstance(argument, str):
        place = f"{argument}: {key}{_value_in(argument, key)}" if is_yaml(argument) else argument
    else:
        place = f"{key}={argument.get(key, '')}"
    return (
        f"{place}: {str(error).splitlines()[0]}"
        if hint is None or "${" in place
        else f"{place}: must be {name_kind(hint)}"
    )


def _nearest(config_type: type, key: str) -> str:
    near = get_close_matches(key, [known.name for known in describe_keys(config_type)], n=2)
    return f"; did you mean {' or '.join(near)}?" if near else "; --help lists the keys"


def _keys_of(config_type: type, argument: str | Mapping[str, Any], arguments: Sequence[Any]) -> Any:
    if not isinstance(argument, str):
        keys = OmegaConf.create({})
        for key, value in argument.items():
            OmegaConf.update(keys, key, value)
        return keys
    if argument.startswith("-"):
        raise UserError(f"{argument}: keys are written without dashes, {_without_dashes(argument, arguments)}")
    following = [*arguments, ""][list(arguments).index(argument) + 1]
    if argument.startswith("=") or (isinstance(following, str) and following.startswith("=")):
        raise UserError(f"{argument} {following}: no blank may stand beside =, as in key=value".replace(" :", ":"))
    key, equals, value = argument.partition("=")
    is_key = type_of_key(config_type, key.partition(".")[0]) is not None
    return (
        _override(config_type, key, value)
        if equals and (is_key or not is_yaml(argument))
        else _read_yaml(config_type, argument, arguments)
    )


def _without_dashes(argument: str, arguments: Sequence[Any]) -> str:
    """Return a word that begins with dashes as key=value; its value may be the next word."""
    key, equals, value = argument.lstrip("-").partition("=")
    following = arguments[list(arguments).index(argument) + 1 :]
    if not equals and following and isinstance(following[0], str) and not following[0].startswith("-"):
        value = following[0]
    return f"{key.replace('-', '_')}={value or '…'}"


def is_yaml(uri: str) -> bool:
    """Tell whether a word names a YAML file, and not one that is shipped or a key."""
    return uri.partition("?")[0].endswith((".yaml", ".yml"))


def _override(config_type: type, key: str, value: str) -> Any:
    """Parse `key=value`; a text field takes the value as it stands, so that a question may hold any character."""
    hint = type_of_key(config_type, key)
    if is_dataclass(hint):
        raise UserError(
            f"{key}={value}: {key} has several keys; give one of them, such as {key}.{fields(hint)[0].name}=…"
        )
    if hint is str:
        return _update(key, value)
    if hint == list[str]:
        texts = yaml.load(value if value.startswith("[") else f"[{value}]", yaml.BaseLoader)
        if not all(isinstance(text, str) for text in texts):
            raise UserError(f"{key}={value}: must be a list of texts, [one,two]")
        return _update(key, texts)
    return OmegaConf.from_dotlist([f"{key}={value}"])


def _update(key: str, value: str | list[str]) -> DictConfig:
    """Return a config of one key, whose texts hold what was typed: no number, no `${…}` of OmegaConf's."""
    update = OmegaConf.create({})
    texts = [text.replace("${", "\\${") for text in ([value] if isinstance(value, str) else value)]
    OmegaConf.update(update, key, texts[0] if isinstance(value, str) else texts)
    return update


def _read_yaml(config_type: type, argument: str, arguments: Sequence[Any]) -> DictConfig:
    shipped: Mapping[str, Path] = getattr(config_type, "SHIPPED", {})
    uri = argument if is_yaml(argument) else str(shipped.get(argument, argument))
    if not is_yaml(uri) or not storage.file_exists(uri):
        known = f", nor a shipped config ({', '.join(shipped)})" if shipped else ""
        near = get_close_matches(argument, shipped, n=1) or [_with_key(config_type, argument, arguments)]
        hint = "" if "=" in argument else f"; did you mean {near[0]}?"
        raise MissingError(f"{argument}: neither key=value of a known key, nor a YAML file{known}{hint}")
    text = storage.read_bytes(uri).decode()
    loaded = OmegaConf.create(text)
    if not isinstance(loaded, DictConfig):
        raise UserError(f"{uri}: holds no keys")
    try:
        _take_texts(config_type, loaded, yaml.load(text, yaml.BaseLoader))  # a loader that makes texts alone
    except UserError as error:
        raise UserError(f"{uri}: {error}") from None
    return loaded


def _take_texts(config_type: type, loaded: Any, written: Mapping[str, Any], prefix: str = "") -> None:
    """Give keys of texts what was written, where YAML would make a number or a truth value of it."""
    for key, value in written.items():
        hint = type_of_key(config_type, f"{prefix}{key}")
        if isinstance(value, dict) and isinstance(loaded[key], DictConfig):
            _take_texts(config_type, loaded[key], value, f"{prefix}{key}.")
        elif is_dataclass(hint):
            raise UserError(f"{prefix}{key} has several keys; give them below it, such as {fields(hint)[0].name}: …")
        elif loaded[key] is None or "${" in str(value):
            continue
        elif (hint is str and isinstance(value, str)) or (hint == list[str] and isinstance(value, list)):
            loaded[key] = value


def _with_key(config_type: type, word: str, arguments: Sequence[Any]) -> str:
    """Return a word with the key that it is most likely meant for: the first needed one that is not given.

    A verb's own keys come before those that it shares with others.
    """
    words = [argument for argument in arguments if isinstance(argument, str)]
    given = {argument.partition("=")[0] for argument in words if "=" in argument}
    own = config_type.__annotations__
    keys = [key for key in describe_keys(config_type) if key.name not in given]
    keys.sort(key=lambda key: (key.default != "needed", key.name not in own))
    name = keys[0].name
    if type_of_key(config_type, name) == list[str]:
        bare = [argument for argument in words if "=" not in argument and not is_yaml(argument)]
        return f"{name}=[{','.join(bare)}]"
    return f"{name}={word}"


def read_saved_config(uri: str) -> dict[str, Any]:
    """Return the keys of a config that was saved beside an output.

    Raises:
        UserError: If the file is damaged.
    """
    try:
        content = yaml.safe_load(storage.read_bytes(uri)) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{uri}: damaged, not YAML ({describe_yaml_error(error)})") from None
    if not isinstance(content, dict):
        raise UserError(f"{uri}: damaged, holds no keys")
    return content


def _value_in(path: str, key: str) -> str:
    """Return `=value` of a key in a YAML file; nothing where that is no single value."""
    value = yaml.safe_load(storage.read_bytes(path))
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return f"={shorten(str(value))}" if isinstance(value, str | int | float) else ""


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
