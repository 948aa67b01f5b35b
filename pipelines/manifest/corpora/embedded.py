"""Sound that lies inside a table, `{bytes, path}` in a column as Hugging Face `datasets` has it: copied into tars once.

Everywhere else recordings are read in place; a page of Parquet is no place that a clip could be read from. The bytes
are copied as they are, a tar for each `ROWS_PER_TAR` rows, and the same table gives the same tars.
"""

import io
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

from pipelines import storage
from pipelines.errors import UserError

ROWS_PER_TAR = 1_000
MEMBER_MODE = 0o444
Row = tuple[str, Mapping[str, Any]]


def unpack_sound(rows: Iterable[Row], column: str, *, out: str, table: str) -> Iterator[Row]:
    """Yield the rows with `path` in place of the sound: its member of a tar below `out`, which is there by then.

    Raises:
        UserError: Naming the row whose column holds no sound.
    """
    stem = PurePosixPath(table.partition("?")[0]).name.partition(".")[0]
    rows = iter(rows)
    for number in range(1 << 62):
        part = islice(rows, ROWS_PER_TAR)
        first = next(part, None)
        if first is None:
            return
        name = f"{stem}-{number:06d}.tar"
        told: list[Row] = []
        with (
            storage.staged_file(storage.join(out, name)) as path,
            tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for place, row in _chain(first, part):
                data = _bytes_of(row.get(column), column, place)
                member = tarfile.TarInfo(f"{number * ROWS_PER_TAR + len(told):09d}{_ending(data)}")
                member.size, member.mode = len(data), MEMBER_MODE
                tar.addfile(member, io.BytesIO(data))
                kept = {key: value for key, value in row.items() if key != column}
                told.append((place, {**kept, "path": f"{name}!{member.name}"}))
        yield from told


@contextmanager
def taken_back_on_failure(out: str) -> Iterator[None]:
    """Remove the tars that appear in `out` during the block if it fails, and the folders that were made for them."""
    before = {*storage.list_names(out)}
    made = [folder for folder in (out, storage.parent(out)) if not storage.folder_exists(folder)]
    try:
        yield
    except BaseException:
        for name in {*storage.list_names(out)} - before:
            storage.delete_file(storage.join(out, name))
        for folder in made:
            storage.remove_empty(folder)
        raise


def _chain(first: Row, rest: Iterable[Row]) -> Iterator[Row]:
    yield first
    yield from rest


def _bytes_of(value: Any, column: str, place: str) -> bytes:
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes) or not data:
        kind = "a path alone" if isinstance(value, dict) and value.get("path") else "no bytes"
        raise UserError(f"{place}: {column} holds {kind}, no sound; recording=… names files")
    return data


def _ending(data: bytes) -> str:
    """Return the ending of a file that begins so; none matters, as all are told apart by their bytes."""
    heads = {b"RIFF": ".wav", b"RF64": ".wav", b"fLaC": ".flac", b"OggS": ".ogg"}
    return heads.get(data[:4], ".mp3")
