"""Text files of corpora, read piece by piece; what is wrong in them is named with file and place."""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from pipelines import storage
from pipelines.errors import MissingError, UserError
from pipelines.manifest.corpus import require_folder

JSON_CHUNK_CHARS = 2**20
JSON_ITEM_CHARS = 2**26
"""A longer item of a JSON list counts as damaged; a day's recording in segments of two seconds has some 2**24."""

_BETWEEN_ITEMS = re.compile(r"[\s,]*")


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

    Raises:
        MissingError: If there is no such file.
        UserError: If there is no such list, or an item is not an object.
    """
    decoder = json.JSONDecoder()
    with _open_text(uri) as file:
        text, position, number = _text_of_list(file, uri, key), 0, 0
        while True:
            position = _BETWEEN_ITEMS.match(text, position).end()  # type: ignore[union-attr]  # it matches "" too
            if text.startswith("]", position):
                return
            place = f"{uri}: {key}[{number}]"
            try:
                item, end = decoder.raw_decode(text, position)
            except json.JSONDecodeError as error:
                rest = text[position:]
                chunk = "" if len(rest) > JSON_ITEM_CHARS else file.read(max(JSON_CHUNK_CHARS, len(rest)))
                if not chunk:
                    raise UserError(f"{place}: not JSON, or cut short ({error.msg})") from None
                text, position = rest + chunk, 0
                continue
            if not isinstance(item, dict):
                raise UserError(f"{place}: is {type(item).__name__}, not an object")
            yield place, item
            position, number = end, number + 1


def _text_of_list(file: TextIO, uri: str, key: str) -> str:
    """Return the first text after the bracket that opens the list."""
    opening = re.compile(rf'"{re.escape(key)}"\s*:\s*\[')
    text = ""
    while chunk := file.read(JSON_CHUNK_CHARS):
        text = text[-JSON_CHUNK_CHARS:] + chunk
        if found := opening.search(text):
            return text[found.end() :]
    raise UserError(f"{uri}: has no list under {key!r}")
