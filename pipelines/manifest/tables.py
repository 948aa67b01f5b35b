"""The manifest: what is heard (clips.parquet) and what is asked and answered (examples.parquet).

A clip is keyed by a digest of its corpus and segments, so that n examples about the same audio share one clip, and the
same clip has the same id on every machine. Tables are read and written as streams; a writer keeps 16 bytes per id.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from encoders.audio import Segment
from llm.prompts import PROMPTS
from pipelines import storage
from pipelines.errors import MissingError, UserError
from pipelines.storage.arrays import Keys
from pipelines.storage.tables import ROWS_PER_GROUP

CLIPS, EXAMPLES = "clips.parquet", "examples.parquet"
CLIP_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("corpus", pa.string()),
        ("split", pa.string()),
        ("root", pa.string()),
        (
            "segments",
            pa.list_(
                pa.struct(
                    [
                        ("recording", pa.string()),
                        ("start_seconds", pa.float64()),
                        ("duration_seconds", pa.float64()),
                    ]
                )
            ),
        ),
        ("seconds", pa.float64()),
        ("sources", pa.list_(pa.string())),
    ]
)
OPTIONAL = ("sources",)
"""Columns that manifests and plans made before 2026-11-28 lack: they read as null there."""
NULLABLE = ("seconds", "sources", "question")
EXAMPLE_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("example_id", "clip_id", "corpus", "split", "task", "question", "answer")]
)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What the encoders hear: segments of recordings below `root`, `seconds` long (None: header unreadable).

    `sources` tells each segment's recording from another of its name (`lengths.source_of`); empty: not known.
    """

    clip_id: str
    corpus: str
    split: str
    root: str
    segments: tuple[Segment, ...]
    seconds: float | None
    sources: tuple[str, ...] = ()

    @property
    def recordings(self) -> list[str]:
        """The recordings' names below `root`."""
        return [segment.recording for segment in self.segments]

    def located(self) -> list[Segment]:
        """The segments with recordings as full URIs, ready for `load_clip`."""
        return [
            Segment(storage.join(self.root, segment.recording), segment.start_seconds, segment.duration_seconds)
            for segment in self.segments
        ]


@dataclass(frozen=True, kw_only=True)
class Example:
    """A question about a clip and its answer; without a question the task's prompts serve."""

    example_id: str
    clip_id: str
    corpus: str
    split: str
    task: str
    question: str | None
    answer: str


def read_clips(uri: str) -> Iterator[Clip]:
    """Yield a manifest's clips in their order, a few thousand in memory at a time.

    Raises:
        MissingError: If the folder holds no manifest.
        UserError: If the table lacks a column.
    """
    for batch in read_batches(uri, CLIPS, CLIP_SCHEMA.names):
        yield from map(clip_from_row, batch.to_pylist())


def clip_from_row(row: Mapping[str, Any]) -> Clip:
    """Build a clip from a row of a table with the columns of `CLIP_SCHEMA`."""
    segments = tuple(Segment(**segment) for segment in row["segments"])
    columns = {name: row[name] for name in CLIP_SCHEMA.names if name not in OPTIONAL}
    return Clip(**{**columns, "segments": segments, "sources": tuple(row.get("sources") or ())})


def row_from_clip(clip: Clip) -> dict[str, Any]:
    """Return a clip as a row of a table with the columns of `CLIP_SCHEMA`."""
    segments = [vars(segment) for segment in clip.segments]
    return {**vars(clip), "segments": segments, "sources": list(clip.sources) or None}


def source_key(sources: Sequence[str]) -> int:
    """Return 64 bits instead of a clip's sources, 0 where they are not known."""
    if not sources:
        return 0
    return int.from_bytes(hashlib.blake2b("\0".join(sources).encode(), digest_size=8).digest(), "little") or 1


def source_keys(sources: pa.Array) -> Keys:
    """Return `source_key` of each row of the column [N]."""
    return np.array([source_key(row or ()) for row in sources.to_pylist()], np.uint64)


def read_examples(uri: str) -> Iterator[Example]:
    """Yield a manifest's examples in their order. Raises as `read_clips`."""
    for batch in read_batches(uri, EXAMPLES, EXAMPLE_SCHEMA.names):
        yield from (Example(**row) for row in batch.to_pylist())


def read_batches(uri: str, name: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield columns of `CLIPS` or `EXAMPLES`, up to `ROWS_PER_GROUP` rows at a time. Raises as `read_clips`."""
    with _open_table(uri, name, columns) as file:
        for batch in storage.iter_batches(file, ROWS_PER_GROUP, columns):
            yield with_columns(batch, columns)


def require_named(uri: str, splits: Sequence[str], tasks: Sequence[str]) -> None:
    """Check names of a selection of a manifest's examples: a mistyped one among others would only make it smaller.

    A known task need not be there: a stage's tasks are learnt as far as the corpora have them.

    Raises:
        UserError: If no example is in one of several splits, or has one of several tasks that is not ours either.
    """
    unseen = {"split": set(splits) if len(splits) > 1 else set(), "task": set(tasks) if len(tasks) > 1 else set()}
    unseen["task"] -= PROMPTS.keys()
    found: dict[str, set[str]] = {name: set() for name, values in unseen.items() if values}
    for batch in read_batches(uri, EXAMPLES, list(found)) if found else ():
        for name, values in found.items():
            values.update(pc.unique(batch[name]).to_pylist())
        if all(unseen[name] <= values for name, values in found.items()):
            return
    for name, values in found.items():
        for value in sorted(unseen[name] - values):
            raise UserError(f"{uri}: no example has {name} {value}; {name}s found: {', '.join(sorted(values))}")


def with_columns(batch: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
    """Return columns of a batch in this order, null where an older file lacks an optional one."""
    for name in columns:
        if name in OPTIONAL and name not in batch.schema.names:
            batch = batch.append_column(name, pa.nulls(batch.num_rows, CLIP_SCHEMA.field(name).type))
    for name in columns:
        if name not in NULLABLE and batch[name].null_count:
            raise pa.ArrowInvalid(f"column {name} lacks a value in some row")  # which `open_parquet` puts a name to
    return batch.select(list(columns))


def take_rows(uri: str, name: str, columns: Sequence[str], rows_N: np.ndarray[Any, np.dtype[np.int64]]) -> pa.Table:
    """Return the rows of these numbers, counted from 0, in the order given; groups that hold none are not read.

    Raises as `read_clips`.
    """
    order_N = np.argsort(rows_N, kind="stable")
    ascending_N = rows_N[order_N]
    parts, start = [], 0
    with _open_table(uri, name, columns) as file:
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            if np.diff(np.searchsorted(ascending_N, (start, end))):
                for batch in storage.iter_batches(file, ROWS_PER_GROUP, columns, groups=[group]):
                    first, last = np.searchsorted(ascending_N, (start, start + batch.num_rows))
                    parts.append(with_columns(batch, columns).take(pa.array(ascending_N[first:last] - start)))
                    start += batch.num_rows
            start = end
        none = pa.RecordBatch.from_pylist([], schema=file.schema_arrow)
        table = pa.Table.from_batches(parts or [with_columns(none, columns)])
    if np.array_equal(ascending_N, rows_N):
        return table
    places_N = np.empty_like(order_N)
    places_N[order_N] = np.arange(len(order_N))
    return table.take(pa.array(places_N))


def read_rows(uri: str, name: str, columns: Sequence[str], numbers: Collection[int]) -> list[dict[str, Any]]:
    """Return the rows of these numbers, counted from 0, in the table's order. Raises as `read_clips`."""
    rows: list[dict[str, Any]] = take_rows(uri, name, columns, np.unique(np.array([*numbers], np.int64))).to_pylist()
    return rows


@contextmanager
def _open_table(uri: str, name: str, columns: Sequence[str]) -> Iterator[pq.ParquetFile]:
    table = storage.join(uri, name)
    if not storage.file_exists(table):
        raise MissingError(f"{uri}: no manifest there ({name} is missing); salmonn prepare … makes one")
    fields = {field.name: field for field in (*CLIP_SCHEMA, *EXAMPLE_SCHEMA)}
    with storage.open_parquet(table, pa.schema([fields[column] for column in columns]), optional=OPTIONAL) as file:
        yield file


def require_clips(uri: str) -> None:
    """Refuse what is no manifest of any clips.

    Raises:
        MissingError: If the folder holds no manifest.
        UserError: If the table lacks a column or holds no clips.
    """
    with _open_table(uri, CLIPS, CLIP_SCHEMA.names) as file:
        if not file.metadata.num_rows:
            raise UserError(f"{uri}: the manifest holds no clips")


def count_clips(uri: str) -> int:
    """Return the number of clips from the table's footer alone."""
    with storage.open_parquet(storage.join(uri, CLIPS)) as file:
        return int(file.metadata.num_rows)


def examples_per_clip(uri: str) -> float:
    """Return how many examples a clip has on average, 1 at least, from the tables' footers alone."""
    with storage.open_parquet(storage.join(uri, EXAMPLES)) as file:
        return max(1.0, float(file.metadata.num_rows / count_clips(uri)))


def corpus_roots(uri: str) -> dict[str, str]:
    """Return corpus -> root for the corpora that are in one place."""
    roots: dict[str, set[str]] = {}
    for batch in read_batches(uri, CLIPS, ["corpus", "root"]):
        for pair in pa.Table.from_batches([batch]).group_by(["corpus", "root"]).aggregate([]).to_pylist():
            roots.setdefault(pair["corpus"], set()).add(pair["root"])
    return {corpus: next(iter(places)) for corpus, places in roots.items() if len(places) == 1}
