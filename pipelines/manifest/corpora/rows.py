"""Rows of any table: CSV, TSV, JSON, Parquet, Arrow, WebDataset tars, or a folder of the last three.

Every row comes with its place in the file, for messages. Nothing of a row is dropped: one that has not as many cells as
the header is refused. Cells of CSV and TSV are texts, other cells what the file says they are.
"""

import csv
import gzip
import json
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, BinaryIO, Literal, cast

import pyarrow as pa

from pipelines import storage
from pipelines.errors import MissingError, UserError, shorten
from pipelines.manifest.corpora.text_files import read_json_list
from pipelines.storage.tables import ROWS_PER_GROUP

ENDINGS = ("csv", "tsv", "json", "jsonl", "ndjson", "parquet", "arrow", "tar")
IN_FOLDERS = (".parquet", ".arrow", ".tar")
SOUNDS = ("wav", "flac", "ogg", "opus", "mp3")
CELL_CHARACTERS = 1 << 20
"""Longest cell of a CSV; what is longer has a quote that never closes."""
Row = dict[str, Any]


def read_rows_of(
    uri: str, *, columns: Sequence[str] = (), delimiter: str = "", quotes: bool = True, rows: int = ROWS_PER_GROUP
) -> Iterator[tuple[str, Row]]:
    """Yield (`file:line` or `file: row number`, row) of a table, by the ending of its name.

    Args:
        uri: The table, or a folder of Parquet or Arrow files or of WebDataset tars, which is read by names.
        columns: The columns of a CSV or TSV without a header line.
        delimiter: Between its cells; empty: a comma for .csv, a tab for .tsv.
        quotes: Whether double quotes hold its cells together; otherwise they are text.
        rows: Rows of Parquet that are in memory at a time.

    Raises:
        MissingError: If there is no such file.
        UserError: If the ending is unknown, or naming the line that is damaged or has too few or too many cells.
    """
    ending = ending_of(uri)
    if ending in ("csv", "tsv"):
        yield from _csv_rows(uri, columns, delimiter or {"csv": ",", "tsv": "\t"}[ending], quotes=quotes)
    elif ending in ("json", "jsonl", "ndjson"):
        yield from _json_rows(uri)
    elif ending in ("parquet", "arrow"):
        yield from _column_rows(uri, ending, rows)
    elif ending == "tar":
        yield from _tar_rows(uri)
    elif storage.folder_exists(uri):
        names = [name for name in storage.list_names(uri) if name.endswith(IN_FOLDERS)]
        if not names:
            raise UserError(f"{uri}: the folder holds no file that ends in {', '.join(IN_FOLDERS)}")
        for name in names:
            yield from read_rows_of(storage.join(uri, name), rows=rows)
    elif not storage.file_exists(uri):
        raise MissingError(f"{uri}: no such file")
    else:
        raise UserError(f"{uri}: the name must end in {', '.join(f'.{ending}' for ending in ENDINGS)}")


def ending_of(uri: str) -> str:
    """Return what a table's name ends in, without `.gz`."""
    return uri.partition("?")[0].lower().removesuffix(".gz").rpartition(".")[2]


@contextmanager
def _open(uri: str) -> Iterator[BinaryIO]:
    with storage.open_file(uri) as file:
        if uri.partition("?")[0].lower().endswith(".gz"):
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield cast(BinaryIO, unpacked)
        else:
            yield file


def _lines(uri: str) -> Iterator[tuple[int, str]]:
    """Yield (number, line) with the line's end; each is decoded by itself, so that a wrong one is named."""
    number = 0
    with _open(uri) as file:
        try:
            for number, data in enumerate(file, start=1):
                yield number, data.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{uri}:{number}: not UTF-8 ({error.reason})") from None
        except (EOFError, gzip.BadGzipFile) as error:
            raise UserError(f"{uri}: cut short or damaged after line {number} ({error})") from None


def _csv_rows(uri: str, columns: Sequence[str], delimiter: str, *, quotes: bool) -> Iterator[tuple[str, Row]]:
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    reader = csv.reader((line for _, line in _lines(uri)), delimiter=delimiter, quoting=quoting, strict=True)
    header, first = list(columns), 1
    csv.field_size_limit(CELL_CHARACTERS)
    while True:
        first = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{uri}:{first}: {_csv_fault(error)}; the row begins at this line") from None
        if not cells:
            continue
        if not header:
            header = [cell.strip() for cell in cells]
            if len({*header}) < len(header):
                raise UserError(f"{uri}:{first}: two columns have one name: {', '.join(map(repr, header))}")
            continue
        if len(cells) != len(header):
            raise UserError(
                f"{uri}:{first}: has {len(cells)} cells, not {len(header)} ({', '.join(header)}); "
                f'a cell that holds {delimiter!r} stands in "double quotes"'
            )
        yield f"{uri}:{first}", dict(zip(header, cells, strict=True))


def _csv_fault(error: csv.Error) -> str:
    text = str(error)
    if text.startswith(("unexpected end of data", "field larger")):
        return "a double quote opens and never closes; quotes=false takes quotes as text"
    return f"not CSV ({text}); quotes=false takes quotes as text"


def _json_rows(uri: str) -> Iterator[tuple[str, Row]]:
    """Yield the objects of a list, or one a line."""
    with _open(uri) as file:
        start = file.read(4_096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"["):
        with _open(uri) as file:
            yield from read_json_list(uri, file, "item")
        return
    for number, line in _lines(uri):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{uri}:{number}: not a JSON object ({error})") from None
        if not isinstance(row, dict):
            raise UserError(f"{uri}:{number}: found {type(row).__name__}, not a JSON object")
        yield f"{uri}:{number}", row


def _tar_rows(uri: str) -> Iterator[tuple[str, Row]]:
    """Yield the samples of a WebDataset tar: what .json says, .txt as `text`, and where the sound is as `path`."""
    archive = uri.partition("?")[0].rpartition("/")[2]
    with storage.open_file(uri) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for key, members in groupby((m for m in tar if m.isreg()), lambda m: _sample_key(m.name)):
                    row: Row = {}
                    for member in members:
                        tar.members.clear()  # type: ignore[attr-defined]  # or all headers would be kept
                        kind = member.name.rpartition(".")[2].lower()
                        if kind in SOUNDS:
                            row["path"] = f"{archive}!{member.name}"
                        elif kind in ("json", "txt"):
                            row |= _member_cells(tar, member, kind, f"{uri}!{member.name}")
                    yield f"{uri}!{key}", row
        except tarfile.TarError as error:
            raise UserError(f"{uri}: not a tar, or damaged ({error})") from None


def _sample_key(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _member_cells(tar: tarfile.TarFile, member: tarfile.TarInfo, kind: str, place: str) -> Row:
    data = tar.extractfile(member)
    assert data is not None, "a regular file has bytes"
    try:
        text = data.read().decode()
        cells = json.loads(text) if kind == "json" else {"text": text.strip()}
    except ValueError as error:
        raise UserError(f"{place}: not {'JSON' if kind == 'json' else 'a text'} in UTF-8 ({error})") from None
    if not isinstance(cells, dict):
        raise UserError(f"{place}: is {type(cells).__name__}, not an object")
    return cells


def _column_rows(uri: str, ending: str, rows: int) -> Iterator[tuple[str, Row]]:
    number = 0
    for batch in _batches(uri, ending, rows):
        names = _class_names(batch.schema)
        for row in batch.to_pylist():
            number += 1
            for column in names.keys() & row.keys():
                row[column] = _class_name(names[column], row[column], f"{uri}: row {number}: {column}")
            yield f"{uri}: row {number}", row


def _batches(uri: str, ending: str, rows: int) -> Iterator[pa.RecordBatch]:
    if ending == "parquet":
        with storage.open_parquet(uri) as file:
            yield from storage.iter_batches(file, rows)
        return
    with storage.open_file(uri) as binary:
        try:
            yield from pa.ipc.open_stream(binary)  # as Hugging Face `datasets` writes it
        except pa.ArrowInvalid:
            binary.seek(0)
            try:
                reader = pa.ipc.open_file(binary)
            except pa.ArrowInvalid as error:
                raise UserError(f"{uri}: not an Arrow file ({shorten(str(error))})") from None
            yield from (reader.get_batch(place) for place in range(reader.num_record_batches))


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Return column -> names of the classes that its numbers stand for, as Hugging Face `datasets` notes them."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    labels = {name: kind for name, kind in features.items() if isinstance(kind, dict)}
    return {name: list(kind["names"]) for name, kind in labels.items() if kind.get("_type") == "ClassLabel"}


def _class_name(names: Sequence[str], value: Any, place: str) -> str | None:
    if value is None or value == -1:  # `datasets` writes -1 where there is no label
        return None
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise UserError(f"{place}: {value!r} is no class of the {len(names)} that the file names")
    return names[value]
