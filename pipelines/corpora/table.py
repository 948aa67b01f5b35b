"""Any table of recordings and texts: CSV with a header, JSON lines, or Parquet."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from encoders.audio import Segment
from pipelines import storage
from pipelines.prepare import CorpusExample, PrepareConfig, PrepareReport, require_folder, write_manifest
from pipelines.progress import Progress


@dataclass(frozen=True)
class TableConfig(PrepareConfig):
    table: str = MISSING
    """[URI] The file: .csv (with a header line), .jsonl or .parquet."""
    audio_root: str = ""
    """[URI] Folder below which the paths lie; empty: the table's own folder."""
    corpus: str = "table"
    """[name] Corpus name in the manifest; part of every clip's identity."""
    path_column: str = "path"
    """[column] The recording, relative to audio_root."""
    text_column: str = "text"
    """[column] The answer: transcript, caption, label."""
    task: str = "asr"
    """[name] Task of all rows, unless there is a column `task`."""
    split: str = "train"
    """[name] Split of all rows, unless there is a column `split`."""


def prepare_table(config: TableConfig, progress: Progress | None = None) -> PrepareReport:
    """Write the manifest of a table; columns `question`, `start_seconds` and `duration_seconds` are read if present."""
    root = config.audio_root or storage.parent(config.table)
    root = require_folder(root, "audio_root")
    return write_manifest(read_table(config), corpus=config.corpus, root=root, config=config, progress=progress)


def read_table(config: TableConfig) -> Iterator[CorpusExample]:
    """Yield a table's examples.

    Raises:
        ValueError: Naming the file, the row and the column that is missing or empty.
    """
    for number, row in _rows(config.table):
        place = f"{config.table}:{number}"
        for column in (config.path_column, config.text_column):
            if column not in row:
                raise ValueError(f"{place}: no column {column!r}; found {', '.join(map(repr, row))}")
        path = _text(row, config.path_column, place)
        if not path or ".." in path.split("/") or path.startswith("/"):
            raise ValueError(f"{place}: {config.path_column} {path!r} must be a path below audio_root")
        if row[config.text_column] is None:
            raise ValueError(f"{place}: {config.text_column} is missing")
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
        raise ValueError(f"{place}: {column} {value!r} must be a text")
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
        raise ValueError(f"{place}: {column} {value!r} must be a number of seconds, 0 or more")
    return seconds


def _rows(uri: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line or row number, row)."""
    ending = uri.partition("?")[0].rpartition(".")[2].lower()
    if ending == "csv":
        yield from _csv_rows(uri)
    elif ending in ("jsonl", "ndjson"):
        yield from _json_rows(uri)
    elif ending == "parquet":
        with storage.open_parquet(uri) as file:
            rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
            yield from enumerate(rows, start=1)
    else:
        raise ValueError(f"table={uri}: the name must end in .csv, .jsonl or .parquet")


def _csv_rows(uri: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with storage.open_file(uri) as binary, io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            for row in reader:
                yield reader.line_num, {key: value for key, value in row.items() if key is not None}
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{uri}:{reader.line_num}: not CSV in UTF-8 ({error})") from None


def _json_rows(uri: str) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    with storage.open_file(uri) as binary, io.TextIOWrapper(binary, encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _json_object(line)
        except ValueError as error:  # of JSON and of UTF-8
            raise ValueError(f"{uri}:{number}: not a JSON object in UTF-8 ({error})") from None


def _json_object(line: str) -> dict[str, Any]:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"found {type(row).__name__}")
    return row
