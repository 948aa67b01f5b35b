"""Text files of corpora, read piece by piece; what is wrong in them is named with file and place."""

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, TextIO, cast

import ijson

from pipelines import storage
from pipelines.errors import MissingError, UserError, shorten
from pipelines.manifest.corpus import require_folder


def require_layout(root: str, entries: Sequence[str], *, expected: str) -> str:
    """Return the full URI of a corpus's root, which has every file or folder of `entries`.

    Raises:
        MissingError: Naming the first that is missing, and what was `expected` at `root`.
    """
    root = require_folder(root, "root")
    for entry in entries:
        uri = storage.join(root, entry)
        if not (storage.file_exists(uri) or storage.folder_exists(uri)):
            raise MissingError(f"root={root}: no {entry}; expected {expected}")
    return root


@contextmanager
def _open_text(uri: str) -> Iterator[TextIO]:
    with storage.open_file(uri) as binary, io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as file:
        try:
            yield file
        except UnicodeDecodeError as error:
            raise UserError(f"{uri}: not UTF-8 ({error.reason})") from None


def read_lines(uri: str) -> Iterator[tuple[str, str]]:
    """Yield (`file:line`, stripped line) of the lines that are not blank.

    Raises:
        MissingError: If there is no such file.
        UserError: If it is not UTF-8.
    """
    with _open_text(uri) as file:
        for number, line in enumerate(file, start=1):
            if stripped := line.strip():
                yield f"{uri}:{number}", stripped


def read_rows(uri: str, columns: Sequence[str], *, tabs: bool = False) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (`file:line`, row) of a table with a header line: CSV, or with `tabs` TSV with backslashes, not quotes.

    Raises:
        MissingError: If there is no such file.
        UserError: If it lacks one of `columns`, or a row does not have as many cells as the header.
    """
    with _open_text(uri) as file:
        if tabs:
            reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE, escapechar="\\")
        else:
            reader = csv.DictReader(file)
        header = list(reader.fieldnames or [])
        for column in columns:
            if column not in header:
                raise UserError(f"{uri}: no column {column!r}; found {', '.join(map(repr, header)) or 'nothing'}")
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise UserError(f"{uri}:{reader.line_num}: does not have {len(header)} cells like the header")
                yield f"{uri}:{reader.line_num}", row
        except csv.Error as error:
            raise UserError(f"{uri}:{reader.line_num}: {error}") from None


def read_json_items(uri: str, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (`file: key[number]`, object) of the list of objects under `key`, without ever holding the whole file.

    Only the outermost object's own `key` counts.

    Raises:
        MissingError: If there is no such file.
        UserError: If it is not JSON in UTF-8, there is no such list, or an item is not an object.
    """
    found = False
    with storage.open_file(uri) as file:
        for place, item in read_json_list(uri, file, f"{key}.item"):
            found = True
            yield place, item
    if not found:  # empty, or not there
        with storage.open_file(uri) as file:
            events = ijson.parse(_without_mark(file))
            if not any((prefix, event) == (key, "start_array") for prefix, event, _ in events):
                raise UserError(f"{uri}: has no list under {key!r}")


def read_json_list(uri: str, file: BinaryIO, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, object) of a list of objects in an open file, named as ijson names it (`item`: the whole file).

    Raises:
        UserError: If the file is not JSON in UTF-8, or an item is not an object.
    """
    name = f"{uri}: {prefix.removesuffix('item').rstrip('.')}"
    number = 0
    try:
        for item in ijson.items(_without_mark(file), prefix, use_float=True):
            if not isinstance(item, dict):
                raise UserError(f"{name}[{number}]: is {type(item).__name__}, not an object")
            yield f"{name}[{number}]", item
            number += 1
    except (ijson.JSONError, UnicodeDecodeError) as error:
        raise UserError(f"{name}[{number}]: not JSON in UTF-8, or cut short ({shorten(str(error))})") from None


def _without_mark(file: BinaryIO) -> BinaryIO:
    """Skip a byte-order mark, with which some programs begin a file."""
    buffered = file if isinstance(file, io.BufferedReader) else io.BufferedReader(file)  # type: ignore[type-var]
    if buffered.peek(3)[:3] == codecs.BOM_UTF8:
        buffered.read(3)
    return cast(BinaryIO, buffered)
