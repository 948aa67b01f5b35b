"""Any table of recordings and texts: CSV, TSV, JSON, Parquet or Arrow.

It is also the way in for texts that somebody spoke or had spoken, and whose recordings are therefore nobody else's:
keywords of Inspec's abstracts (task `keywords`, the answer's keywords between semicolons), WikiQA's questions (`sqqa`).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal

from omegaconf import MISSING

from encoders.audio import Segment
from pipelines import storage
from pipelines.errors import UserError, shorten
from pipelines.interface.progress import Progress
from pipelines.manifest.corpora.embedded import taken_back_on_failure, unpack_sound
from pipelines.manifest.corpora.gigaspeech import is_garbage, written
from pipelines.manifest.corpora.recordings import recording_name
from pipelines.manifest.corpora.rows import read_rows_of
from pipelines.manifest.corpus import CorpusExample, PrepareConfig, Skipped, require_folder, require_question
from pipelines.manifest.prepare import write_manifest
from pipelines.manifest.reports import PrepareReport
from pipelines.storage.tables import ROWS_PER_GROUP

ROWS_WITH_SOUND = 64


@dataclass(frozen=True)
class TableConfig(PrepareConfig):
    table: str = MISSING
    """[URI] The file: .csv, .tsv, .jsonl, .json (a list, or an object a line), each also as .gz; .parquet, .arrow, or a
    WebDataset .tar; or a folder of such."""
    audio_root: str = ""
    """[URI] Folder that the paths start from; empty: the table's folder or, of absolute paths, the root of all."""
    corpus: str = "table"
    """[name] Corpus name in the manifest; part of every clip's identity."""
    columns: list[str] = field(default_factory=list)
    """[names] The columns of a CSV file without a header line; empty: its first line says them."""
    delimiter: str = ""
    """[character] Between the cells of a CSV or TSV file; empty: a comma or a tab. `\\t` is a tab."""
    quotes: bool = True
    """[true/false] Whether double quotes hold the cells of a CSV file together; false: they are text."""
    recording: str = "{path}"
    """[template] The recording below audio_root, made of the row's columns, such as wavs/{id}.wav."""
    audio_column: str = ""
    """[column] Holds the sound itself, as bytes or `{bytes, path}`, copied into tars; `recording` is unused."""
    audio_out: str = ""
    """[URI] Folder of those tars; empty: `recordings` in out."""
    start_column: str = "start_seconds"
    """[column] Where the segment starts, in seconds, or in milliseconds if its name ends in _ms."""
    end_column: str = ""
    """[column] Where the segment ends, likewise; empty: it lasts as the column duration_seconds says, if any."""
    text_column: str = "text"
    """[column] The answer: transcript, caption, label."""
    text_form: Literal["plain", "gigaspeech"] = "plain"
    """[name] gigaspeech: upper case with tags <COMMA>, <PERIOD> …, which become lower case and marks; rows without
    speech (<MUSIC>, <NOISE> …) are left out."""
    task: str = "asr"
    """[name] Task of all rows, unless there is a column `task`."""
    split: str = "train"
    """[name] Split of all rows, unless there is a column `split`."""

    def __post_init__(self) -> None:
        """Check the delimiter."""
        super().__post_init__()
        if len(self.delimiter.replace("\\t", "\t")) > 1:
            raise UserError(f"delimiter={self.delimiter!r}: must be one character")


def prepare_table(config: TableConfig, progress: Progress | None = None) -> PrepareReport:
    """Write the manifest of a table; columns `question`, `start_seconds` and `duration_seconds` are read if present."""
    rows = _rows(config)
    if not config.audio_column:
        return _prepare(config, rows, progress)
    out = storage.full_path(config.audio_out or storage.join(config.out, "recordings"))
    config = replace(config, audio_out=out, audio_root=out, recording="{path}")
    with taken_back_on_failure(out):
        return _prepare(config, unpack_sound(rows, config.audio_column, out=out, table=config.table), progress)


def _prepare(
    config: TableConfig, rows: Iterator[tuple[str, Mapping[str, Any]]], progress: Progress | None
) -> PrepareReport:
    first = next(rows, None)
    if first is None:
        raise UserError(f"{config.table}: no examples: it holds no row")
    root = config.audio_root or _root_of(config, first)
    root = require_folder(root, "audio_root") if storage.is_local(root) else storage.full_path(root)
    examples = read_table(config, root, chain([first], rows))
    return write_manifest(examples, corpus=config.corpus, root=root, config=config, progress=progress)


def _rows(config: TableConfig) -> Iterator[tuple[str, Mapping[str, Any]]]:
    delimiter = config.delimiter.replace("\\t", "\t")
    rows = ROWS_WITH_SOUND if config.audio_column else ROWS_PER_GROUP
    return read_rows_of(config.table, columns=config.columns, delimiter=delimiter, quotes=config.quotes, rows=rows)


def _root_of(config: TableConfig, first: tuple[str, Mapping[str, Any]]) -> str:
    """Return the table's folder, or what absolute paths and URIs start from."""
    path = recording_name(config.recording, _present(first[1]), first[0], absolute=True)
    folder = config.table if storage.folder_exists(config.table) else storage.parent(config.table)
    return storage.root_of(path) or folder


def _present(cells: Mapping[str, Any]) -> dict[str, Any]:
    return {column: cell for column, cell in cells.items() if cell is not None}


def read_table(
    config: TableConfig, root: str, rows: Iterable[tuple[str, Mapping[str, Any]]]
) -> Iterator[CorpusExample | Skipped]:
    """Yield the examples of a table's (place, row).

    Raises:
        UserError: Naming the file, the row and the column that is missing, empty or no text.
    """
    asked: set[str] = set()
    for place, cells in rows:
        row = _present(cells)
        path = _below(root, recording_name(config.recording, row, place, absolute=True), place)
        if config.text_column not in row:
            raise UserError(f"{place}: {config.text_column} is missing; found {', '.join(map(repr, row))}")
        answer = _text(row, config.text_column, place)
        if not answer.strip():
            raise UserError(f"{place}: {config.text_column} is empty; a row without an answer teaches nothing")
        task, question = _text(row, "task", place) or config.task, _text(row, "question", place) or None
        if question is None and task not in asked:
            require_question(task, place)
            asked.add(task)
        segment = Segment(path, *_span(config, cells, place))
        if config.text_form == "gigaspeech":
            if is_garbage(answer):
                yield Skipped(path, "segment without speech", answer)
                continue
            answer = written(answer, punctuation=True)
        yield CorpusExample((segment,), _text(row, "split", place) or config.split, task, answer, question)


def _below(root: str, path: str, place: str) -> str:
    """Return a recording's name below the root, also of an absolute path or a URI."""
    if not storage.root_of(path):
        return path
    base, mark, query = root.partition("?")
    name = path.removesuffix(mark + query).removeprefix(base.rstrip("/") + "/")
    if name == path or storage.root_of(name):
        raise UserError(f"{place}: recording {path} does not lie below audio_root={root}")
    return name


def _text(row: Mapping[str, Any], column: str, place: str) -> str:
    """Return a cell as a text; numbers that are whole and UTF-8 in bytes mean one, other types do not."""
    value = row.get(column)
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise UserError(f"{place}: {column} holds bytes that are not UTF-8, no text") from None
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{place}: {column} {shorten(repr(value))} must be a text, not {type(value).__name__}")
    if value and "\0" in value:
        raise UserError(f"{place}: {column} {shorten(repr(value))} holds a NUL")
    return value or ""


def _span(config: TableConfig, row: Mapping[str, Any], place: str) -> tuple[float, float | None]:
    """Return where a row's segment starts and how long it lasts, None: up to the recording's end."""
    for column in (config.start_column, config.end_column):
        if column not in (*row, "", "start_seconds"):
            raise UserError(f"{place}: {column} is missing; found {', '.join(map(repr, row))}")
    start = _seconds(row, config.start_column, place) or 0.0
    if not config.end_column:
        return start, _seconds(row, "duration_seconds", place)
    end = _seconds(row, config.end_column, place)
    if end is not None and end <= start:
        raise UserError(f"{place}: {config.end_column} {row[config.end_column]!r} does not come after the start")
    return start, end and round(end - start, 6)


def _seconds(row: Mapping[str, Any], column: str, place: str) -> float | None:
    value, unit = row.get(column), "milliseconds" if column.endswith("_ms") else "seconds"
    if value is None or value == "":
        return None
    try:
        number = -1.0 if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0.0 <= number < float("inf"):
        raise UserError(f"{place}: {column} {shorten(repr(value))} must be a number of {unit}, 0 or more")
    return number / 1000 if unit == "milliseconds" else number
