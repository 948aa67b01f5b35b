"""The examples of a manifest whose clips a cache holds."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.batches.mix import MixRow, Mixture, make_mixture
from pipelines.batches.order import ShardOrder
from pipelines.cache.clip_index import ClipIndex
from pipelines.errors import UserError
from pipelines.manifest.tables import EXAMPLES, read_examples
from pipelines.storage.arrays import Indices

HASHED_ROWS = 65_536
"""Ids that are Python texts at a time."""
COLUMNS = ["example_id", "clip_id", "task", "question", "answer"]


@dataclass(frozen=True)
class ExampleSet:
    """Examples whose clips a cache holds; `positions` are their rows in its index. About 300 bytes per example.

    An epoch of them is what `mixture` draws, without one every example once, in the order of `shards` if there is one.
    """

    table: pa.Table
    positions: Indices
    missing: pa.Table
    """example_id and clip_id of the examples that are left out because the cache lacks their clips."""
    mixture: Mixture | None = None
    shards: ShardOrder | None = None

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def digest(self) -> str:
        """Name these examples in this order; a run that continues on others would not go on where it stopped."""
        digest = hashlib.sha256()
        for batch in self.table.select(["example_id"]).to_batches(max_chunksize=HASHED_ROWS):
            digest.update("".join(batch["example_id"].to_pylist()).encode())
        if self.shards:
            digest.update(self.shards.numbers.tobytes())
        return digest.hexdigest()

    def rows(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return examples as dictionaries with the keys of `COLUMNS`."""
        rows: list[dict[str, Any]] = self.table.take(pa.array(indices, pa.int64())).to_pylist()
        return rows


def tasks_of(examples: ExampleSet) -> list[str]:
    """Return the names of the tasks that are drawn from, in alphabetical order."""
    if examples.mixture:
        return sorted({share.row.task for share in examples.mixture.shares})
    tasks: list[str] = sorted(pc.unique(examples.table["task"]).to_pylist())
    return tasks


def load_examples(
    manifest: str,
    cache: ClipIndex,
    *,
    splits: Sequence[str],
    tasks: Sequence[str],
    max_missing_fraction: float,
    mix: Sequence[MixRow] = (),
    shard_window: int = 0,
    more_columns: Sequence[str] = (),
) -> ExampleSet:
    """Join a manifest's examples with a cache; an empty list of splits or tasks stands for all, or all of the mix.

    With a `shard_window` they come shard by shard, shuffled among so many. `more_columns` of the manifest are kept.

    Raises:
        UserError: If nothing is selected, or all of it, or more than `max_missing_fraction`, has no features in the
            cache.
    """
    tasks = tasks or sorted({row.task for row in mix})
    splits_read = splits and sorted({*splits, *(split for row in mix for split in row.splits)})
    next(read_examples(manifest), None)  # its errors name what a manifest is
    filesystem, path = storage.resolve(storage.join(manifest, EXAMPLES))
    conditions = [(name, "in", list(names)) for name, names in (("split", splits_read), ("task", tasks)) if names]
    columns = [*COLUMNS, "corpus", "split"] if mix else [*COLUMNS, *more_columns]
    table = pq.read_table(path, filesystem=filesystem, columns=columns, filters=conditions or None)
    if table.num_rows == 0:
        raise UserError(_nothing_selected(manifest, splits, tasks, is_mixed=bool(mix)))
    positions = cache.positions(table["clip_id"])
    missing = int((positions < 0).sum())
    if missing > max_missing_fraction * table.num_rows or missing == table.num_rows:
        first = table["clip_id"][int(np.argmax(positions < 0))].as_py()
        raise UserError(
            f"{cache.uri} lacks the features of {missing} of {table.num_rows} examples (the first: clip {first}), more "
            f"than max_missing_fraction={max_missing_fraction} allows; salmonn extract adds what was not rejected"
        )
    missing_ids = table.filter(pa.array(positions < 0)).select(["example_id", "clip_id"])
    table = table.filter(pa.array(positions >= 0))
    positions = positions[positions >= 0]
    mixture = make_mixture(mix, table, splits=splits) if mix else None
    shards = ShardOrder.of(cache.shard_numbers()[positions], shard_window) if shard_window else None
    # In one chunk: picking some rows of many chunks takes time that grows with the table.
    return ExampleSet(table.select([*COLUMNS, *more_columns]).combine_chunks(), positions, missing_ids, mixture, shards)


def _nothing_selected(manifest: str, splits: Sequence[str], tasks: Sequence[str], *, is_mixed: bool) -> str:
    filesystem, path = storage.resolve(storage.join(manifest, EXAMPLES))
    table = pq.read_table(path, filesystem=filesystem, columns=["split", "task"])
    found = {name: sorted(pc.unique(table[name]).to_pylist()) for name in ("split", "task")}
    keys = ["mix="] * is_mixed + ["tasks=[]"] * (not set(tasks) & set(found["task"]) and bool(tasks))
    keys += ["splits=[]"] * (not set(splits) & set(found["split"]) and bool(splits))
    keys = keys or ["tasks=[]", "splits=[]"]  # each is there, but no example has both
    return (
        f"{manifest}: no example has splits={list(splits)} and tasks={list(tasks)}; splits found: "
        f"{', '.join(found['split'])}; tasks found: {', '.join(found['task'])}; to take all: {' '.join(keys)}"
    )
