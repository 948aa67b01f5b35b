"""The examples of a manifest whose clips a cache holds."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import storage
from pipelines.batches.mix import MixRow, Mixture, make_mixture
from pipelines.batches.order import ShardOrder
from pipelines.cache.clip_index import ClipIndex
from pipelines.errors import UserError
from pipelines.manifest.tables import EXAMPLE_SCHEMA, EXAMPLES, read_batches
from pipelines.storage.arrays import Indices, numbers

VERSION = 1
"""Of the tables that `load_examples` keeps."""
SMALL_NBYTES = 4_000_000
"""Examples up to this large a file are read by each process for itself."""
COLUMNS = ["example_id", "clip_id", "task", "question", "answer"]


@dataclass(frozen=True)
class ExampleSet:
    """Examples whose clips a cache holds; `positions` are their rows in its index.

    The processes of a machine share the memory of a large set: see `pipelines.storage.snapshots`.

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
        for ids in self.table["example_id"].chunks:
            _, ends, texts = ids.buffers()
            ends_N = np.frombuffer(ends, np.int32)[ids.offset : ids.offset + len(ids) + 1]
            digest.update(memoryview(texts)[ends_N[0] : ends_N[-1]] if len(ids) else b"")
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
    next(read_batches(manifest, EXAMPLES, EXAMPLE_SCHEMA.names), None)  # its errors name what a manifest is
    columns = [*COLUMNS, "corpus", "split"] if mix else [*COLUMNS, *more_columns]
    table = _joined(manifest, cache, {"split": list(splits_read), "task": list(tasks)}, columns)
    if table.num_rows == 0:
        raise UserError(_nothing_selected(manifest, splits, tasks, is_mixed=bool(mix)))
    positions_N = numbers(table["position"])
    held = int((positions_N >= 0).sum())  # the others come last
    missing = table.num_rows - held
    if missing > max_missing_fraction * table.num_rows or not held:
        first = table["clip_id"][held].as_py()
        raise UserError(
            f"{cache.uri} lacks the features of {missing} of {table.num_rows} examples (the first: clip {first}), more "
            f"than max_missing_fraction={max_missing_fraction} allows; salmonn extract adds what was not rejected"
        )
    missing_ids = table.slice(held).select(["example_id", "clip_id"])
    table, positions_N = table.slice(0, held), positions_N[:held]
    mixture = make_mixture(mix, table, splits=splits) if mix else None
    shards = ShardOrder.of(cache.shard_numbers()[positions_N], shard_window) if shard_window else None
    return ExampleSet(table.select([*COLUMNS, *more_columns]), positions_N, missing_ids, mixture, shards)


def _joined(manifest: str, cache: ClipIndex, wanted: Mapping[str, list[str]], columns: Sequence[str]) -> pa.Table:
    """Return the examples that have one of the `wanted` values in each column, no values standing for all.

    Beside `columns` there is position, the row of an example's clip in the cache's index. Those that have none, -1,
    come last; else the order is the manifest's. Most is in one chunk: picking some rows of many takes time that grows
    with the table.
    """
    uri = storage.join(manifest, EXAMPLES)
    conditions = [(name, "in", values) for name, values in wanted.items() if values]

    def make(_: pa.Table | None) -> pa.Table:
        table = storage.select_parquet(uri, columns, conditions or None)
        positions_N = cache.positions(table["clip_id"])
        table = table.append_column("position", pa.array(positions_N))
        if (positions_N < 0).any():
            table = table.take(pa.array(np.argsort(positions_N < 0, kind="stable")))
        return table.combine_chunks()

    file = next(file for file in storage.list_files(manifest) if file[0] == EXAMPLES)
    if file[1] <= SMALL_NBYTES:
        return make(None)
    what = json.dumps([storage.full_path(manifest), storage.full_path(cache.uri), wanted, list(columns)])
    key = json.dumps([VERSION, what, file, cache.key])
    name, key = (hashlib.sha256(text.encode()).hexdigest() for text in (what, key))
    return storage.snapshot(f"examples-{name[:16]}", key[:32], make)


def _nothing_selected(manifest: str, splits: Sequence[str], tasks: Sequence[str], *, is_mixed: bool) -> str:
    table = storage.select_parquet(storage.join(manifest, EXAMPLES), ["split", "task"])
    found = {name: sorted(pc.unique(table[name]).to_pylist()) for name in ("split", "task")}
    keys = ["mix="] * is_mixed + ["tasks=[]"] * (not set(tasks) & set(found["task"]) and bool(tasks))
    keys += ["splits=[]"] * (not set(splits) & set(found["split"]) and bool(splits))
    keys = keys or ["tasks=[]", "splits=[]"]  # each is there, but no example has both
    return (
        f"{manifest}: no example has splits={list(splits)} and tasks={list(tasks)}; splits found: "
        f"{', '.join(found['split'])}; tasks found: {', '.join(found['task'])}; to take all: {' '.join(keys)}"
    )
