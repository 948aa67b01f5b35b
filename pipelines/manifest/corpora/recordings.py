"""Names of recordings that a corpus's metadata only implies, and the packagings in which a corpus is found.

A reader's `PACKAGINGS` are templates of names below the root, each with who makes a folder that looks so;
`docs/packagings.md` lists them all.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

from pipelines import storage
from pipelines.errors import MissingError, UserError, shorten
from pipelines.manifest.corpus import require_folder

TRIED_ROWS = 50
"""First rows by whose recordings a packaging is recognised: of a corpus fetched from the web, some are gone."""


def recording_name(template: str, fields: Mapping[str, object], place: str, *, absolute: bool = False) -> str:
    """Return the name below the root, or an absolute one, that a template such as `audio/{id}.wav` makes of a row.

    Raises:
        UserError: If the row lacks a column that the template asks for, or the name leads out of the root.
    """
    try:
        name = template.format(**fields)
    except KeyError as error:
        found = ", ".join(map(repr, fields))
        raise UserError(f"{place}: no column {error}, which recording={template} names; found {found}") from None
    except (AttributeError, IndexError, ValueError) as error:
        raise UserError(f"recording={template}: not a template of columns ({error})") from None
    if not name or ".." in name.split("/") or "\0" in name or (name.startswith("/") and not absolute):
        raise UserError(f"{place}: recording {shorten(repr(name))} must be a path below its root")
    return name


def with_recordings(
    rows: Iterable[tuple[str, Mapping[str, Any]]], template: str, packagings: Iterable[str], root: str
) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """Yield (place, row, recording's name) of rows, named as `find_packaging` finds. Raises as `recording_name`."""
    chosen, rows = find_packaging(rows, template, packagings, root)
    for place, row in rows:
        yield place, row, recording_name(chosen, row, place)


def find_packaging(
    rows: Iterable[tuple[str, Mapping[str, Any]]], template: str, packagings: Iterable[str], root: str
) -> tuple[str, Iterator[tuple[str, Mapping[str, Any]]]]:
    """Return the template that names the rows' recordings, and the rows.

    Where none is given it is the first packaging in which one of the first rows' recordings is there, or the first of
    all where none is. Raises as `recording_name`.
    """
    rows = iter(rows)
    first = list(islice(rows, TRIED_ROWS))
    return template or _that_is_there(first, list(packagings), root), chain(first, rows)


def _that_is_there(rows: Sequence[tuple[str, Mapping[str, Any]]], packagings: Sequence[str], root: str) -> str:
    for packaging in packagings if len(packagings) > 1 else []:
        names = (recording_name(packaging, row, place) for place, row in rows)
        if any(storage.file_exists(storage.join(root, name)) for name in names):
            return packaging
    return packagings[0]


def recording_folders(template: str, packagings: Iterable[str], **part: str) -> list[str]:
    """Return the folders below the root that may hold the recordings of a part such as split="train"."""
    known = [template] if template else list(packagings)
    for field, value in part.items():
        known = [name.replace(f"{{{field}}}", value) for name in known]
    return [name.partition("{")[0].rpartition("/")[0] for name in known]


def require_parts(
    root: str, key: str, asked: Sequence[str], parts: Mapping[str, Sequence[Sequence[str]]], *, expected: str
) -> str:
    """Return the full URI of a corpus's root that holds the parts asked for.

    Args:
        root: The root.
        key: The key that chooses parts, such as `splits`.
        asked: What it says.
        parts: Of each part what must be there, files or folders, of each any of several.
        expected: What belongs at the root, for the message.

    Raises:
        MissingError: Naming what is missing, and the parts that are there.
    """
    root = require_folder(root, "root")
    for part in asked:
        if lacks := _lacks(root, parts[part]):
            there = [other for other in parts if not _lacks(root, parts[other])]
            proposal = f"; {key}=[{','.join(there)}] {'are' if len(there) > 1 else 'is'} there" if there else ""
            raise MissingError(f"root={root}: no {lacks}; expected {expected}{proposal}")
    return root


def _lacks(root: str, entries: Sequence[Sequence[str]]) -> str:
    return next((" or ".join(names) for names in entries if not any(_is_there(root, name) for name in names)), "")


def _is_there(root: str, name: str) -> bool:
    uri = storage.join(root, name or ".")
    return storage.file_exists(uri) or storage.folder_exists(uri)


def with_times(row: Mapping[str, Any], start: str, end: str = "", seconds: float = 0.0) -> dict[str, Any]:
    """Return a row with columns start_ms, end_ms and end_time [s] besides, as names of cut clips hold them.

    Columns `start` and `end` hold seconds; without an end it is `seconds` after the start. Where they hold no numbers
    the row stays as it is.
    """
    try:
        begins = float(row[start])
        ends = float(row[end]) if end else begins + seconds
        return {**row, "start_ms": round(1000 * begins), "end_ms": round(1000 * ends), "end_time": f"{ends:g}"}
    except (KeyError, OverflowError, TypeError, ValueError):
        return dict(row)
