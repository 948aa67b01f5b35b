"""Any table of recordings and texts: CSV, JSON lines, or Parquet.

It is also the way in for texts that somebody spoke or had spoken, and whose recordings are therefore nobody else's:
keywords of Inspec's abstracts (task `keywords`, the answer's keywords between semicolons), WikiQA's questions (`sqqa`).
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from omegaconf import MISSING

from encoders.audio import Segment
from pipelines import storage
from pipelines.errors import UserError
from pipelines.interface.progress import Progress
from pipelines.manifest.corpora.recordings import recording_name
from pipelines.manifest.corpus import CorpusExample, PrepareConfig, require_folder
from pipelines.manifest.prepare import PrepareReport, write_manifest
from pipelines.storage.tables import ROWS_PER_GROUP


@dataclass(frozen=True)
class TableConfig(PrepareConfig):
    table: str = MISSING
    """[URI] The file: .csv, .jsonl or .parquet."""
    audio_root: str = ""
    """[URI] Folder that the paths start from; empty: the table's folder."""
    corpus: str = "table"
    """[name] Corpus name in the manifest; part of every clip's identity."""
    columns: list[str] = field(default_factory=list)
    """[names] The columns of a CSV file without a header line; empty: its first line says them."""
    delimiter: str = ","
    """[character] Between the cells of a CSV file."""
    quotes: bool = True
    """[true/false] Whether double quotes hold the cells of a CSV file together; false: they are text."""
    recording: str = "{path}"
    """[template] The recording below audio_root, made of the row's columns, such as wavs/{id}.wav."""
    text_column: str = "text"
    """[column] The answer: transcript, caption, label."""
    task: str = "asr"
    """[name] Task of all rows, unless there is a column `task`."""
    split: str = "train"
    """[name] Split of all rows, unless there is a column `split`."""

    def __post_init__(self) -> None:
        """Check the delimiter."""
        if len(self.delimiter) != 1:
            raise UserError(f"delimiter={self.delimiter!r}: must be one character")


def prepare_table(config: TableConfig, progress: Progress | None = None) -> PrepareReport:
    """Write the manifest of a table; columns `question`, `start_seconds` and `duration_seconds` are read if present."""
    root = config.audio_root or storage.parent(config.table)
    root = require_folder(root, "audio_root")
    return write_manifest(read_table(config), corpus=config.corpus, root=root, config=config, progress=progress)


def read_table(config: TableConfig) -> Iterator[CorpusExample]:
    """Yield a table's examples.

    Raises:
        UserError: Naming the file, the row and the column that is missing or empty.
    """
    for number, cells in _rows(config):
        place, row = f"{config.table}:{number}", {column: cell for column, cell in cells.items() if cell is not None}
        path = recording_name(config.recording, row, place)
        if config.text_column not in row:
            raise UserError(f"{place}: {config.text_column} is missing; found {', '.join(map(repr, row))}")
        start = _seconds(row, "start_seconds", place) or 0.0
        yield CorpusExample(
            (Segment(path, start, _seconds(row, "duration_seconds", place)),),
            _text(row, "split", place) or config.split,
            _text(row, "task", place) or config.task,
            _text(row, config.text_column, place),
            _text(row, "question", place) or None,
        )


def _text(row: Mapping[str, Any], column: str, place: str) -> str:
    value = row.get(column)
    if isinstance(value, list | dict):
        raise UserError(f"{place}: {column} {value!r} must be a text")
    return "" if value is None else str(value)


def _seconds(row: Mapping[str, Any], column: str, place: str) -> float | None:
    value = row.get(column)
    if value is None or value == "":
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0.0 <= seconds < float("inf"):
        raise UserError(f"{place}: {column} {value!r} must be a number of seconds, 0 or more")
    return seconds


def _rows(config: TableConfig) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line or row number, row)."""
    uri = config.table
    ending = uri.partition("?")[0].rpartition(".")[2].lower()
    if ending == "csv":
        yield from _csv_rows(config)
    elif ending in ("jsonl", "ndjson"):
        yield from _json_rows(uri)
    elif ending == "parquet":
        with storage.open_parquet(uri) as file:
            rows = (row for batch in storage.iter_batches(file, ROWS_PER_GROUP) for row in batch.to_pylist())
            yield from enumerate(rows, start=1)
    else:
        raise UserError(f"table={uri}: the name must end in .csv, .jsonl or .parquet")


def _csv_rows(config: TableConfig) -> Iterator[tuple[int, dict[str, Any]]]:
    uri, columns = config.table, config.columns or None
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if config.quotes else csv.QUOTE_NONE
    with storage.open_file(uri) as binary, io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, columns, delimiter=config.delimiter, quoting=quoting)
        try:
            for row in reader:
                yield reader.line_num, {key: value for key, value in row.items() if key is not None}
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{uri}:{reader.line_num}: not CSV in UTF-8 ({error})") from None


def _json_rows(uri: str) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    with storage.open_file(uri) as binary, io.TextIOWrapper(binary, encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _json_object(line)
        except ValueError as error:  # of JSON and of UTF-8
            raise UserError(f"{uri}:{number}: not a JSON object in UTF-8 ({error})") from None


def _json_object(line: str) -> dict[str, Any]:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise UserError(f"found {type(row).__name__}")
    return row
