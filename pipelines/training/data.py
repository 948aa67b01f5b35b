"""What a run learns from and is validated on, opened once for one run after another; without PyTorch."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from pipelines.batches.example_set import ExampleSet, load_examples
from pipelines.batches.mix import MixRow
from pipelines.cache.clip_index import ClipIndex
from pipelines.cache.read_config import ReadConfig
from pipelines.manifest.tables import require_named
from pipelines.training.config import TrainConfig

EXAMPLE_SETS = 2
"""Kept at a time: the examples that are learnt and those held out."""

Kept = TypeVar("Kept")


class RunData:
    """Opens the index of a cache and its examples, and keeps both for the next run where that wants the same."""

    def __init__(self) -> None:
        self._indexes: list[tuple[Any, ClipIndex]] = []
        self._examples: list[tuple[Any, ExampleSet]] = []
        self._named: list[tuple[Any, None]] = []

    def open_index(self, uri: str, read: ReadConfig) -> ClipIndex:
        """Return `ClipIndex(uri, read)`; raises as that."""
        return kept(self._indexes, (uri, read), lambda: ClipIndex(uri, read), limit=1)

    def require_named(self, config: TrainConfig) -> None:
        """Check the names of splits and tasks, those of one manifest once; raises as `tables.require_named`."""
        for selection in ((config.manifest, config.splits, config.tasks), (config.manifest, config.valid_splits, [])):
            kept(self._named, selection, partial(require_named, *selection), limit=EXAMPLE_SETS)

    def load_train_examples(self, config: TrainConfig, index: ClipIndex, mix: Sequence[MixRow]) -> ExampleSet:
        """Return the examples to learn from; raises as `load_examples`."""
        return self._load(
            config,
            index,
            splits=config.splits,
            tasks=config.tasks,
            mix=mix,
            shard_window=config.shard_window if config.order == "shards" else 0,
        )

    def load_valid_examples(self, config: TrainConfig, index: ClipIndex, tasks: list[str]) -> ExampleSet:
        """Return the held-out examples of the run's tasks; raises as `load_examples`."""
        return self._load(config, index, splits=config.valid_splits, tasks=tasks)

    def _load(self, config: TrainConfig, index: ClipIndex, **selection: Any) -> ExampleSet:
        selection["max_missing_fraction"] = config.max_missing_fraction
        key = (config.manifest, index, selection)
        return kept(self._examples, key, lambda: load_examples(config.manifest, index, **selection), limit=EXAMPLE_SETS)


def kept(those: list[tuple[Any, Kept]], key: Any, make: Callable[[], Kept], *, limit: int) -> Kept:
    """Return what was made for this key, the newest at the list's end; it is made if it is not there."""
    for known, value in those:
        if known == key:
            return value
    del those[: max(0, len(those) - limit + 1)]  # before there is another: an LLM takes most of a device
    value = make()
    those.append((key, value))
    return value
