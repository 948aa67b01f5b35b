"""The manifest: what is heard (clips.parquet) and what is asked and answered (examples.parquet).

A clip is keyed by a digest of its corpus and segments, so that n examples about the same audio share one clip, and the
same clip has the same id on every machine. Ten million clips with an example each cost the writer about 2 GB for the
digests it has seen; everything else streams. Two writers must not add to one manifest at the same time.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from encoders.audio import Segment
from pipelines import storage

CLIPS, EXAMPLES = "clips.parquet", "examples.parquet"
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
    """Writes both tables in the order given, each clip and each example once; nothing appears before the block ends.

    Args:
        uri: The manifest's folder.
        append: Add to the manifest that is there.

    Raises:
        ValueError: If there is a manifest and `append` is off.
    """

    def __init__(self, uri: str, *, append: bool) -> None:
        self.uri = uri
        self.num_clips = self.num_examples = self.num_duplicates = 0
        self._seen: set[bytes] = set()
        there = storage.file_exists(storage.join(uri, CLIPS))
        if there and not append:
            raise ValueError(f"{uri}: holds a manifest already; append=true adds to it")
        self._files = ExitStack()
        self._clips = self._open(CLIPS, CLIP_SCHEMA)
        self._examples = self._open(EXAMPLES, EXAMPLE_SCHEMA)
        if there:
            for clip in read_clips(uri):
                self.add_clip(clip)
            for example in read_examples(uri):
                self.add_example(example)

    def _open(self, name: str, schema: pa.Schema) -> "_BufferedTable":
        path = self._files.enter_context(storage.staged_file(storage.join(self.uri, name)))
        return self._files.enter_context(_BufferedTable(str(path), schema))

    def has_clip(self, clip: str) -> bool:
        return bytes.fromhex(clip) in self._seen

    def add_clip(self, clip: Clip) -> None:
        self._seen.add(bytes.fromhex(clip.clip_id))
        segments = [vars(segment) for segment in clip.segments]
        self._clips.add({**vars(clip), "segments": segments})
        self.num_clips += 1

    def add_example(self, example: Example) -> None:
        key = bytes.fromhex(example.example_id)
        if key in self._seen:
            self.num_duplicates += 1
            return
        self._seen.add(key)
        self._examples.add(vars(example))
        self.num_examples += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.__exit__(kind, error, trace)


class _BufferedTable:
    """A Parquet file written row by row in groups of `ROWS_PER_GROUP`."""

    def __init__(self, path: str, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._schema = schema
        self._rows: list[Mapping[str, Any]] = []

    def add(self, row: Mapping[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) == ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._rows:
            self._flush()
        self._writer.close()


def read_clips(uri: str) -> Iterator[Clip]:
    """Yield a manifest's clips in their order, a few thousand in memory at a time.

    Raises:
        FileNotFoundError: If the folder holds no manifest.
        ValueError: If the table lacks a column.
    """
    for row in _read_rows(uri, CLIPS, CLIP_SCHEMA):
        yield clip_from_row(row)


def clip_from_row(row: Mapping[str, Any]) -> Clip:
    """Build a clip from a row of a table with the columns of `CLIP_SCHEMA`."""
    segments = tuple(Segment(**segment) for segment in row["segments"])
    return Clip(**{**{name: row[name] for name in CLIP_SCHEMA.names}, "segments": segments})


def read_examples(uri: str) -> Iterator[Example]:
    """Yield a manifest's examples in their order. Raises as `read_clips`."""
    for row in _read_rows(uri, EXAMPLES, EXAMPLE_SCHEMA):
        yield Example(**row)


def _read_rows(uri: str, name: str, schema: pa.Schema) -> Iterator[dict[str, Any]]:
    table = storage.join(uri, name)
    if not storage.file_exists(table):
        raise FileNotFoundError(f"{uri}: no manifest there ({name} is missing); salmonn prepare … makes one")
    with storage.open_parquet(table) as file:
        missing = [column for column in schema.names if column not in file.schema_arrow.names]
        if missing:
            raise ValueError(f"{table}: column {missing[0]} is missing; found {', '.join(file.schema_arrow.names)}")
        for batch in file.iter_batches(ROWS_PER_GROUP, columns=schema.names):
            yield from batch.to_pylist()


def count_clips(uri: str) -> int:
    """Return the number of clips from the table's footer alone."""
    with storage.open_parquet(storage.join(uri, CLIPS)) as file:
        return int(file.metadata.num_rows)


def corpus_roots(uri: str) -> dict[str, str]:
    """Return corpus -> root for the corpora that lie in one place."""
    roots: dict[str, set[str]] = {}
    with storage.open_parquet(storage.join(uri, CLIPS)) as file:
        for batch in file.iter_batches(ROWS_PER_GROUP, columns=["corpus", "root"]):
            for pair in pa.Table.from_batches([batch]).group_by(["corpus", "root"]).aggregate([]).to_pylist():
                roots.setdefault(pair["corpus"], set()).add(pair["root"])
    return {corpus: next(iter(places)) for corpus, places in roots.items() if len(places) == 1}
