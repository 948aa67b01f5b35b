"""A submitted verb as work for a cluster: the command it becomes, its stable name, and what it needs of the nodes."""

import hashlib
import json
import shlex
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import reduce
from pathlib import Path
from re import match
from typing import Any

from cluster.jobs.preflight import Wanted
from pipelines import storage
from pipelines.extraction import config as extraction
from pipelines.extraction.config import ExtractConfig
from pipelines.inference.config import EvaluateConfig
from pipelines.interface.help import changed_keys
from pipelines.operations.config import CHECKS, SubmitConfig
from pipelines.training import config as training
from pipelines.training.config import TrainConfig
from pipelines.training.sweep.config import SweepConfig

NAME_DIGITS = 12


@dataclass(frozen=True)
class SubmittedVerb:
    """How a verb's config becomes work."""

    name: str
    config_type: type
    full_paths: Callable[[Any], Any]
    reads: tuple[str, ...]
    """Keys whose paths, where they are local ones, every node must see."""
    writes: tuple[str, ...]


def _evaluate_paths(config: EvaluateConfig) -> EvaluateConfig:
    return replace(
        config,
        run=storage.full_path(config.run),
        manifest=storage.full_path(config.manifest),
        cache=storage.full_path(config.cache),
        out=storage.full_path(config.out) if config.out else "",
    )


def _sweep_paths(config: SweepConfig) -> SweepConfig:
    return training.full_paths(replace(config, sweep=storage.full_path(config.sweep)))


SUBMITTED = (
    SubmittedVerb("extract", ExtractConfig, extraction.with_full_paths, ("manifest", "whisper", "beats"), ("cache",)),
    SubmittedVerb("sweep", SweepConfig, _sweep_paths, ("manifest", "cache", "llm", "init_from", "mix"), ("sweep",)),
    SubmittedVerb(
        "train", TrainConfig, training.full_paths, ("manifest", "cache", "llm", "init_from", "mix"), ("run", "runs")
    ),
    SubmittedVerb("evaluate", EvaluateConfig, _evaluate_paths, ("run", "manifest", "cache", "llm"), ("run", "out")),
)
"""A sweep is a training too, so it stands before."""


def verb_of(config: SubmitConfig) -> SubmittedVerb:
    """Return the verb that a config submits."""
    return next(verb for verb in SUBMITTED if isinstance(config, verb.config_type))


def own_config(config: SubmitConfig) -> Any:
    """Return the verb's config without the keys of the submission, its paths in full."""
    verb = verb_of(config)
    return verb.full_paths(
        verb.config_type(**{key.name: getattr(config, key.name) for key in fields(verb.config_type)})
    )


def words_of(config: Any) -> list[str]:
    """Return the `key=value` words that make a config out of the defaults, in the order of the keys' names."""
    names = sorted(key.name for key, _ in changed_keys(config))
    return [f"{name}={_written(reduce(getattr, name.split('.'), config))}" for name in names]


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)


def command_of(verb: str, words: list[str]) -> str:
    """Return what the head's shell runs, `exec` so that a signal reaches the verb and its exit code is the job's."""
    return f"exec python -m pipelines {verb} {shlex.join(words)}"


def name_of(verb: str, words: list[str]) -> str:
    """Return the id of a job: the same for the same verb with the same keys, wherever they were written."""
    digest = hashlib.sha256(json.dumps([verb, words]).encode()).hexdigest()
    return f"{verb}-{digest[:NAME_DIGITS]}"


def wanted_of(config: SubmitConfig) -> Wanted:
    """Return what a verb needs of the nodes."""
    verb, own = verb_of(config), own_config(config)
    trains = isinstance(own, TrainConfig)
    return Wanted(
        checks=[check for check in CHECKS if check not in config.skip],
        reads=_local(own, verb.reads),
        writes=_local(own, verb.writes),
        packages=required_packages(Path(config.folder)),
        actors=own.min_workers or own.workers if trains else max(1, own.workers),
        cpus=own.threads,
        gpus=own.gpus_per_process if isinstance(own, SweepConfig) else 1.0,
        device=own.device,
    )


def _local(config: Any, keys: tuple[str, ...]) -> list[str]:
    """Return the values of keys that are paths from the root: neither URIs nor names such as `tiny`."""
    values = [getattr(config, key) for key in keys]
    return [value for value in values if value.startswith("/")]


def required_packages(folder: Path) -> list[str]:
    """Return the names of the packages that a checkout's project needs."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    named = (match(r"[\w.-]+", line) for line in project["dependencies"])
    return sorted(found[0] for found in named if found)
