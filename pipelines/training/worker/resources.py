"""What one run after another of a process has in common: the opened cache, its examples, the frozen LLM."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from llm.lora import remove_lora
from llm.salmonn import Salmonn
from pipelines.batches.example_set import ExampleSet, load_examples
from pipelines.batches.mix import MixRow
from pipelines.cache.read_config import ReadConfig
from pipelines.cache.reader import FeatureCache
from pipelines.runs.spec import RunSpec, fetched
from pipelines.training.config import TrainConfig

EXAMPLE_SETS = 2
"""Kept at a time: those that are learnt and those held out."""

Part = TypeVar("Part")


class Parts:
    """Opens and loads what a run needs, and keeps it for the next run where that wants the same.

    A model is the process's only one: its LLM goes, without the adapter, into the next model that is built.
    """

    def __init__(self) -> None:
        self._caches: list[tuple[Any, FeatureCache]] = []
        self._examples: list[tuple[Any, ExampleSet]] = []
        self._model: tuple[Any, Salmonn] | None = None

    def open_cache(self, uri: str, read: ReadConfig, *, whole_shards: int = 0) -> FeatureCache:
        """Return `FeatureCache(uri, read, …)`; raises as that."""
        key = (uri, read, whole_shards)
        return _kept(self._caches, key, lambda: FeatureCache(uri, read, whole_shards=whole_shards), limit=1)

    def load_examples(self, manifest: str, cache: FeatureCache, **selection: Any) -> ExampleSet:
        """Return `load_examples(manifest, cache, …)`; raises as that."""
        key = (manifest, cache, selection)
        return _kept(self._examples, key, lambda: load_examples(manifest, cache, **selection), limit=EXAMPLE_SETS)

    def build(self, spec: RunSpec, run: str, *, device: str, seed: int) -> Salmonn:
        """Return `spec.build(run, …)`, bit for bit; a model that was built before is of no use then."""
        key, llm = (_identity(spec, run), spec.dtype, device), None
        if self._model and self._model[0] == key:
            llm = (remove_lora(self._model[1].llm), self._model[1].tokenizer)
        self._model = None  # before another LLM is loaded
        model = spec.build(run, device=device, seed=seed, llm=llm)
        self._model = (key, model)
        return model


def _kept(parts: list[tuple[Any, Part]], key: Any, make: Callable[[], Part], *, limit: int) -> Part:
    """Return the part of this key, the newest at the list's end; it is made if it is not there."""
    for kept in parts:
        if kept[0] == key:
            return kept[1]
    part = make()
    parts.append((key, part))
    del parts[:-limit]
    return part


def _identity(spec: RunSpec, run: str) -> str:
    """Return the LLM's path or name; of the tiny one, which lies in each run, what its files hold."""
    if spec.llm != "tiny":
        return spec.llm
    with fetched(run, "llm") as folder:
        files = sorted((folder / "llm").iterdir())
        return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


def load_train_examples(config: TrainConfig, cache: FeatureCache, mix: Sequence[MixRow], parts: Parts) -> ExampleSet:
    """Return the examples to learn from; raises as `load_examples`."""
    return parts.load_examples(
        config.manifest,
        cache,
        splits=config.splits,
        tasks=config.tasks,
        max_missing_fraction=config.max_missing_fraction,
        mix=mix,
        shard_window=config.shard_window if config.order == "shards" else 0,
    )


def load_valid_examples(config: TrainConfig, cache: FeatureCache, tasks: list[str], parts: Parts) -> ExampleSet:
    """Return the held-out examples of the run's tasks; raises as `load_examples`."""
    return parts.load_examples(
        config.manifest,
        cache,
        splits=config.valid_splits,
        tasks=tasks,
        max_missing_fraction=config.max_missing_fraction,
    )
