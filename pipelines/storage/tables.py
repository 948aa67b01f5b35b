"""Parquet files, written whole and read group by group."""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipelines.errors import MissingError, UserError
from pipelines.storage.files import file_exists, staged_file
from pipelines.storage.threads import run_threads
from pipelines.storage.uris import resolve

PAGE_CHECKSUMS: Mapping[str, Any] = {"write_page_checksum": True}
"""What every writer of Parquet is given: a bit that turns inside a page is otherwise another value."""


FETCHED_AT_ONCE, FETCHED_NBYTES = 16, 500_000
"""Small files that a thread fetches in one go, at most: giving it work costs as much as reading a local one."""


def write_table(uri: str, table: pa.Table, *, compression: str = "zstd", use_dictionary: bool = True) -> None:
    """Write a Parquet file whole; the same table gives the same bytes."""
    with staged_file(uri) as path:
        pq.write_table(table, path, compression=compression, use_dictionary=use_dictionary, **PAGE_CHECKSUMS)


@contextmanager
def open_parquet(
    uri: str, schema: pa.Schema | None = None, *, optional: Collection[str] = ()
) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file for the block; it may hold more columns than the schema's, and lack the optional ones.

    Raises:
        MissingError: If there is none.
        UserError: If it is not Parquet, has not the columns of the schema, or the block finds damage in it.
    """
    filesystem, path = resolve(uri)
    if not file_exists(uri):
        raise MissingError(f"{uri}: no such file")
    is_remote = not isinstance(filesystem, fs.LocalFileSystem)
    with _parsed(uri, lambda: filesystem.open_input_file(path), pre_buffer=is_remote) as file:
        if schema:
            _require_columns(file.schema_arrow, schema, optional, uri)
        yield file


@contextmanager
def _parsed(uri: str, source: Callable[[], pa.NativeFile], *, pre_buffer: bool) -> Iterator[pq.ParquetFile]:
    """Read what a Parquet file says of itself; raises UserError as `open_parquet`."""
    try:
        opened = pq.ParquetFile(source(), pre_buffer=pre_buffer, page_checksum_verification=True)
    except (pa.ArrowException, UnicodeDecodeError) as error:  # a column's name may be no text, its type unknown
        raise UserError(f"{uri}: not a Parquet file ({error})") from None
    except OSError as error:
        if error.errno is not None:  # storage's
            raise
        raise UserError(f"{uri}: not a Parquet file ({' '.join(str(error).split())})") from None
    with opened as file, _damage_named(uri):
        groups = map(file.metadata.row_group, range(file.num_row_groups))
        _require_rows(sum(group.num_rows for group in groups), file.metadata.num_rows)
        yield file


def _require_columns(found: pa.Schema, wanted: pa.Schema, optional: Collection[str], uri: str) -> None:
    for field in wanted:
        times = found.names.count(field.name)
        if not times and field.name not in optional:
            raise UserError(f"{uri}: column {field.name} is missing; found {', '.join(found.names)}")
        if times > 1:
            raise UserError(f"{uri}: column {field.name} is there {times} times")
        if times and not found.field(field.name).type.equals(field.type):
            raise UserError(f"{uri}: column {field.name} is of type {found.field(field.name).type}, not {field.type}")


def read_parquet(
    uri: str, schema: pa.Schema | None = None, *, optional: Collection[str] = (), only_schema: bool = False
) -> pa.Table:
    """Return a Parquet file, with `only_schema` those of its columns that the schema has; raises as `open_parquet`."""
    with open_parquet(uri, schema, optional=optional) as file:
        names = [name for name in file.schema_arrow.names if name in schema.names] if schema and only_schema else None
        return _read_columns(file, names)


def read_small_parquets(uris: Sequence[str], schema: pa.Schema, *, threads: int) -> Iterator[pa.Table]:
    """Yield those columns of many small Parquet files that a schema has, in the order of the files.

    They are fetched whole by threads and parsed here: most of a small file's time is spent under Python's lock, for
    which threads that parse would wait. Columns are in the file's order, and may be missing.

    Raises:
        MissingError: If a file is gone.
        UserError: As `open_parquet`.
    """
    first = _read_whole(uris[:1])
    at_once = min([FETCHED_AT_ONCE, len(uris) // (4 * threads), *(FETCHED_NBYTES // max(1, one.size) for one in first)])
    step = max(1, at_once)
    parts = [uris[start : start + step] for start in range(1, len(uris), step)]
    fetched = itertools.chain(first, itertools.chain.from_iterable(run_threads(_read_whole, parts, threads=threads)))
    known = None
    for uri, data in zip(uris, fetched, strict=True):
        with _parsed(uri, lambda data=data: pa.BufferReader(data), pre_buffer=False) as file:  # type: ignore[misc]
            table = _read_columns(file, schema.names)
            if known is None or not table.schema.equals(known):  # asking each file for its schema takes a tenth longer
                _require_columns(file.schema_arrow, schema, schema.names, uri)
                known = table.schema
            yield table


def _read_whole(uris: Sequence[str]) -> list[pa.Buffer]:
    found = []
    for uri in uris:
        filesystem, path = resolve(uri)
        try:
            with filesystem.open_input_file(path) as file:
                found.append(file.read_buffer())
        except FileNotFoundError:
            raise MissingError(f"{uri}: no such file") from None
    return found


def _read_columns(file: pq.ParquetFile, names: Sequence[str] | None) -> pa.Table:
    table = file.read(names, use_threads=False)
    _require_rows(table.num_rows, file.metadata.num_rows)
    return table


def select_parquet(uri: str, columns: Sequence[str], filters: Any = None) -> pa.Table:
    """Return the rows of a Parquet file that pass pyarrow's filters and hold no others; raises as `open_parquet`."""
    filesystem, path = resolve(uri)
    if not file_exists(uri):
        raise MissingError(f"{uri}: no such file")
    with _damage_named(uri):
        return pq.read_table(
            path, filesystem=filesystem, columns=list(columns), filters=filters, page_checksum_verification=True
        )


@contextmanager
def _damage_named(uri: str) -> Iterator[None]:
    """Name the file where pyarrow finds damage in it: its errors, texts not in UTF-8, an OSError without a number."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{uri}: damaged ({' '.join(str(error).split())})") from None
    except OSError as error:
        if error.errno is not None:  # storage's
            raise
        raise UserError(f"{uri}: damaged ({' '.join(str(error).split())})") from None


def iter_batches(
    file: pq.ParquetFile, rows: int, columns: Sequence[str] | None = None, *, groups: Iterable[int] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield a Parquet file's batches of at most so many rows, one group of rows in memory; all groups, or some.

    One pass of pyarrow's own over all groups keeps the bytes it has read until its end.
    """
    for group in range(file.num_row_groups) if groups is None else groups:
        found = 0
        for batch in file.iter_batches(rows, row_groups=[group], columns=columns):
            found += batch.num_rows
            yield batch
        _require_rows(found, file.metadata.row_group(group).num_rows)


def _require_rows(found: int, stated: int) -> None:
    """Refuse a column that holds fewer rows than the file says: of one that is read alone pyarrow says nothing."""
    if found != stated:
        raise pa.ArrowInvalid(f"{found} rows were read of {stated}")  # open_parquet names the file


ROWS_PER_GROUP = 16_384


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
            path = self._file.enter_context(staged_file(self.uri))
            self._writer = self._file.enter_context(
                pq.ParquetWriter(path, self.schema, compression="zstd", **PAGE_CHECKSUMS)
            )
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
