"""Parquet files, written whole and read group by group."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.storage.files import file_exists, staged_file
from pipelines.storage.uris import resolve


def write_table(uri: str, table: pa.Table) -> None:
    """Write a Parquet file whole; the same table gives the same bytes."""
    with staged_file(uri) as path:
        pq.write_table(table, path, compression="zstd")


def open_parquet(uri: str) -> pq.ParquetFile:
    """Open a Parquet file.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not Parquet.
    """
    filesystem, path = resolve(uri)
    if not file_exists(uri):
        raise FileNotFoundError(f"{uri}: no such file")
    try:
        return pq.ParquetFile(filesystem.open_input_file(path))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{uri}: not a Parquet file ({error})") from None


def iter_batches(file: pq.ParquetFile, rows: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield a Parquet file's batches of at most so many rows, one group of rows in memory.

    One pass of pyarrow's own over all groups keeps the bytes it has read until its end.
    """
    for group in range(file.num_row_groups):
        yield from file.iter_batches(rows, row_groups=[group], columns=columns)
