"""The manifest: what is heard (clips.parquet) and what is asked and answered (examples.parquet).

A clip is keyed by a digest of its corpus and segments, so that n examples about the same audio share one clip, and the
same clip has the same id on every machine. Tables are read and written as streams; a writer keeps 16 bytes per id.
"""

import hashlib
import json
import os
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from encoders.audio import Segment
from pipelines import storage
from pipelines.id_set import Booleans, IdSet, to_ids

CLIPS, EXAMPLES, LOCK = "clips.parquet", "examples.parquet", "prepare.lock"
ROWS_PER_GROUP = 16_384
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
    ]
)
EXAMPLE_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("example_id", "clip_id", "corpus", "split", "task", "question", "answer")]
)


@dataclass(frozen=True)
class Clip:
    """What the encoders hear: segments of recordings below `root`, `seconds` long (None: header unreadable)."""

    clip_id: str
    corpus: str
    split: str
    root: str
    segments: tuple[Segment, ...]
    seconds: float | None

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


@dataclass(frozen=True)
class Example:
    """A question about a clip and its answer; without a question the task's prompts serve."""

    example_id: str
    clip_id: str
    corpus: str
    split: str
    task: str
    question: str | None
    answer: str


def clip_id(corpus: str, segments: Sequence[Segment]) -> str:
    """Return the 32 hex digits that name a clip, the same on every machine: roots and splits do not count."""
    places = [
        [segment.recording, float(segment.start_seconds), segment.duration_seconds and float(segment.duration_seconds)]
        for segment in segments
    ]
    return _digest([corpus, places])


def example_id(clip: str, task: str, question: str | None, answer: str) -> str:
    """Return the 32 hex digits that name an example."""
    return _digest([clip, task, question, answer])


def _digest(content: object) -> str:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


class ManifestWriter:
    """Writes both tables in the order given; nothing appears before the block ends. A manifest has one writer at once.

    The clips are replaced before the examples: killed in between, the manifest holds clips that nothing asks about
    yet, and the same command run again adds their examples. A manifest is there once its examples are.

    Args:
        uri: The manifest's folder.
        append: Add to the manifest that is there.

    Raises:
        ValueError: If there is a manifest and `append` is off, or another writer is at work.
    """

    def __init__(self, uri: str, *, append: bool) -> None:
        self.uri = uri
        self._clip_ids, self._example_ids = IdSet(), IdSet()
        with ExitStack() as files:
            files.enter_context(_lock(uri))
            there = storage.file_exists(storage.join(uri, EXAMPLES))
            if there and not append:
                raise ValueError(f"{uri}: holds a manifest already; append=true adds to it")
            # Tables are finished in the reverse order.
            self._examples = files.enter_context(RowTable(storage.join(uri, EXAMPLES), EXAMPLE_SCHEMA))
            self._clips = files.enter_context(RowTable(storage.join(uri, CLIPS), CLIP_SCHEMA))
            if there:
                self._copy(CLIPS, self._clips, self._clip_ids)
                self._copy(EXAMPLES, self._examples, self._example_ids)
            self._files = files.pop_all()

    def _copy(self, name: str, table: "RowTable", ids: IdSet) -> None:
        for batch in read_batches(self.uri, name, table.schema.names):
            ids.add(to_ids(batch.column(0)))
            table.add_batch(batch)

    @property
    def num_clips(self) -> int:
        return self._clips.num_rows

    @property
    def num_examples(self) -> int:
        return self._examples.num_rows

    def note_clips(self, clip_ids: Sequence[str]) -> Booleans:
        """Tell which clips [N] are new, that is neither written nor noted before; the caller adds those."""
        return self._clip_ids.add(to_ids(pa.array(clip_ids, pa.string())))

    def note_examples(self, example_ids: Sequence[str]) -> Booleans:
        """Tell which examples [N] are new, as `note_clips`."""
        return self._example_ids.add(to_ids(pa.array(example_ids, pa.string())))

    def add_clip(self, clip: Clip) -> None:
        self._clips.add(row_from_clip(clip))

    def add_example(self, example: Example) -> None:
        self._examples.add(vars(example))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.__exit__(kind, error, trace)


@contextmanager
def _lock(uri: str) -> Iterator[None]:
    lock = storage.join(uri, LOCK)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    owner = f"process {os.getpid()} on {socket.gethostname()} since {started}"
    try:
        storage.write_bytes(lock, owner.encode(), exclusive=True)
    except FileExistsError:
        if not storage.file_exists(lock):
            raise
        raise ValueError(
            f"{uri}: is being written by {storage.read_bytes(lock).decode()}; if that was killed, delete {lock}"
        ) from None
    try:
        yield
    finally:
        storage.delete_file(lock)


class RowTable:
    """A Parquet file written in groups of `ROWS_PER_GROUP`; it appears when the block ends, if it has any rows."""

    def __init__(self, uri: str, schema: pa.Schema) -> None:
        self.uri, self.schema, self.num_rows = uri, schema, 0
        self._file = ExitStack()
        self._writer: pq.ParquetWriter | None = None
        self._rows: list[Mapping[str, Any]] = []

    def add(self, row: Mapping[str, Any]) -> None:
        self._rows.append(row)
        self.num_rows += 1
        if len(self._rows) == ROWS_PER_GROUP:
            self._flush()

    def add_batch(self, batch: pa.RecordBatch) -> None:
        """Add rows as a group of their own; none may wait that were added singly."""
        assert not self._rows, "groups would change places with rows"
        self.num_rows += batch.num_rows
        self._write(pa.Table.from_batches([batch]).select(self.schema.names).cast(self.schema))

    def _flush(self) -> None:
        self._write(pa.Table.from_pylist(self._rows, schema=self.schema))
        self._rows.clear()

    def _write(self, table: pa.Table) -> None:
        if self._writer is None:
            path = self._file.enter_context(storage.staged_file(self.uri))
            self._writer = self._file.enter_context(pq.ParquetWriter(path, self.schema, compression="zstd"))
        self._writer.write_table(table)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._file.__exit__(kind, error, trace)
            return
        with self._file:
            if self._rows:
                self._flush()


def read_clips(uri: str) -> Iterator[Clip]:
    """Yield a manifest's clips in their order, a few thousand in memory at a time.

    Raises:
        FileNotFoundError: If the folder holds no manifest.
        ValueError: If the table lacks a column.
    """
    for batch in read_batches(uri, CLIPS, CLIP_SCHEMA.names):
        yield from map(clip_from_row, batch.to_pylist())


def clip_from_row(row: Mapping[str, Any]) -> Clip:
    """Build a clip from a row of a table with the columns of `CLIP_SCHEMA`."""
    segments = tuple(Segment(**segment) for segment in row["segments"])
    return Clip(**{**{name: row[name] for name in CLIP_SCHEMA.names}, "segments": segments})


def row_from_clip(clip: Clip) -> dict[str, Any]:
    """Return a clip as a row of a table with the columns of `CLIP_SCHEMA`."""
    return {**vars(clip), "segments": [vars(segment) for segment in clip.segments]}


def read_examples(uri: str) -> Iterator[Example]:
    """Yield a manifest's examples in their order. Raises as `read_clips`."""
    for batch in read_batches(uri, EXAMPLES, EXAMPLE_SCHEMA.names):
        yield from (Example(**row) for row in batch.to_pylist())


def read_batches(uri: str, name: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield columns of `CLIPS` or `EXAMPLES`, up to `ROWS_PER_GROUP` rows at a time. Raises as `read_clips`."""
    with _open_table(uri, name, columns) as file:
        for batch in storage.iter_batches(file, ROWS_PER_GROUP, columns):
            yield batch.select(list(columns))


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
                for batch in file.iter_batches(ROWS_PER_GROUP, row_groups=[group], columns=list(columns)):
                    first, last = np.searchsorted(ascending_N, (start, start + batch.num_rows))
                    parts.append(batch.take(pa.array(ascending_N[first:last] - start)))
                    start += batch.num_rows
            start = end
        table = pa.Table.from_batches(parts, None if parts else file.schema_arrow).select(list(columns))
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
        raise FileNotFoundError(f"{uri}: no manifest there ({name} is missing); salmonn prepare … makes one")
    with storage.open_parquet(table) as file:
        missing = [column for column in columns if column not in file.schema_arrow.names]
        if missing:
            raise ValueError(f"{table}: column {missing[0]} is missing; found {', '.join(file.schema_arrow.names)}")
        yield file


def require_clips(uri: str) -> None:
    """Refuse what is no manifest of any clips.

    Raises:
        FileNotFoundError: If the folder holds no manifest.
        ValueError: If the table lacks a column or holds no clips.
    """
    with _open_table(uri, CLIPS, CLIP_SCHEMA.names) as file:
        if not file.metadata.num_rows:
            raise ValueError(f"{uri}: the manifest holds no clips")


def count_clips(uri: str) -> int:
    """Return the number of clips from the table's footer alone."""
    with storage.open_parquet(storage.join(uri, CLIPS)) as file:
        return int(file.metadata.num_rows)


def corpus_roots(uri: str) -> dict[str, str]:
    """Return corpus -> root for the corpora that lie in one place."""
    roots: dict[str, set[str]] = {}
    for batch in read_batches(uri, CLIPS, ["corpus", "root"]):
        for pair in pa.Table.from_batches([batch]).group_by(["corpus", "root"]).aggregate([]).to_pylist():
            roots.setdefault(pair["corpus"], set()).add(pair["root"])
    return {corpus: next(iter(places)) for corpus, places in roots.items() if len(places) == 1}
