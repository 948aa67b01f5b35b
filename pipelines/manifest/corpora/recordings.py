"""Names of recordings that a corpus's metadata only implies, and which of them are there."""

from collections.abc import Mapping

from pipelines import storage
from pipelines.errors import MissingError, UserError

NOT_THERE = "not there"
"""Why an example is skipped whose recording each user has to download, and many cannot."""


def recording_name(template: str, fields: Mapping[str, object], place: str) -> str:
    """Return the name below the root that a template such as `audio/{id}.wav` makes of a row.

    Raises:
        UserError: If the row lacks a column that the template asks for, or the name leads out of the root.
    """
    try:
        name = template.format(**fields)
    except KeyError as error:
        raise UserError(f"{place}: no column {error}; found {', '.join(map(repr, fields))}") from None
    except (AttributeError, IndexError, ValueError) as error:
        raise UserError(f"recording={template}: not a template of columns ({error})") from None
    if not name or ".." in name.split("/") or name.startswith("/"):
        raise UserError(f"{place}: recording {name!r} must be a path below its root")
    return name


class Recordings:
    """The files below a root; each folder is listed once, when it is first asked about."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._names: dict[str, set[str]] = {}
        self._missing = ""
        self._any = False

    def __contains__(self, recording: str) -> bool:
        folder, _, name = recording.rpartition("/")
        if folder not in self._names:
            self._names[folder] = set(storage.list_names(storage.join(self._root, folder) if folder else self._root))
        is_there = name in self._names[folder]
        self._any |= is_there
        self._missing = self._missing or ("" if is_there else recording)
        return is_there

    def require_any(self) -> None:
        """Refuse a root below which nothing that was asked about is.

        Raises:
            MissingError: Naming the first recording that is not there.
        """
        if self._missing and not self._any:
            raise MissingError(f"root={self._root}: no recording is there, not even {self._missing}")
