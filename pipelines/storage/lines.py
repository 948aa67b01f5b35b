"""Files of JSON lines that grow while a job runs, and are read as they grow."""

import json
import logging
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from pipelines.errors import UserError
from pipelines.storage.files import file_exists, open_file, write_bytes
from pipelines.storage.uris import is_local, resolve

logger = logging.getLogger(__name__)

UPLOAD_SECONDS = 30.0
"""Time between uploads of a file that grows, as nothing can be appended to an object."""


class LineFile:
    """Writes a file of lines: appended locally, at once; elsewhere the file is uploaded whole, now and then."""

    def __init__(self, uri: str, lines: Iterable[Mapping[str, Any]] = ()) -> None:
        """Begin with these lines; a file that is there is replaced."""
        self._uri = uri
        self._text = "".join(map(_to_json, lines))
        write_bytes(uri, self._text.encode())
        self._file = Path(resolve(uri)[1]).open("a") if is_local(uri) else None  # noqa: SIM115  # until `close`
        self._flushed = time.monotonic()

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line; numbers that are not finite become null. An upload that fails is tried again with a later line.

        Raises:
            OSError: If a local file cannot be written.
        """
        text = _to_json(line)
        if self._file:
            self._file.write(text)
            self._file.flush()
            return
        self._text += text
        if time.monotonic() - self._flushed > UPLOAD_SECONDS:
            try:
                self.flush()
            except OSError as error:
                logger.warning("%s: not uploaded (%s); trying again later", self._uri, error)

    def flush(self) -> None:
        """Let all lines be where they outlive this machine. Raises OSError if they cannot."""
        if self._file:
            os.fsync(self._file.fileno())
        else:
            write_bytes(self._uri, self._text.encode())
        self._flushed = time.monotonic()

    def close(self) -> None:
        self.flush()
        if self._file:
            self._file.close()


class LineTail:
    """Reads the lines of a file as they come."""

    def __init__(self, uri: str) -> None:
        self._uri, self._position = uri, 0

    def read(self) -> list[dict[str, Any]]:
        """Return the lines since the last call; all if the file began anew.

        A line that is only half there comes when it is whole.

        Raises:
            UserError: If the file is damaged.
        """
        if not file_exists(self._uri):
            return []
        with open_file(self._uri) as file:
            start = self._position - 1
            if not 0 <= start < file.seek(0, os.SEEK_END) or not _is_line_end(file, start):
                start = -1
            file.seek(start + 1)
            text, newline, _ = file.read().rpartition(b"\n")
        self._position = start + 1 + len(text + newline)
        try:
            return [json.loads(line) for line in text.splitlines()]
        except ValueError as error:
            raise UserError(f"{self._uri}: damaged, not a JSON object a line ({error})") from None


def _is_line_end(file: BinaryIO, position: int) -> bool:
    file.seek(position)
    return file.read(1) == b"\n"


def _to_json(line: Mapping[str, Any]) -> str:
    return json.dumps(_without_nan(dict(line)), allow_nan=False) + "\n"


def _without_nan(value: Any) -> Any:
    """Return numbers that are not finite as null, which JSON has no other word for."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
