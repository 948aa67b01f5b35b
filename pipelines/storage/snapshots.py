"""Tables made from many files, kept on this machine once and mapped by all its processes.

A snapshot is an Arrow file in a folder of the user's own: `$SALMONN_SNAPSHOTS`, else `salmonn` in `$XDG_CACHE_HOME` or
`~/.cache`, else one in the folder for temporary files. Its name holds the key of what it was made from and the checksum
of its bytes: other sources are another name, and damaged bytes are made again. It is written whole or not at all.
Nothing is lost with it.
"""

import fcntl
import logging
import os
import stat
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa

from pipelines.storage.files import TEMPORARY_PREFIX, staged_file

logger = logging.getLogger(__name__)

SUFFIX = ".arrow"
KEPT_SECONDS = 30 * 24 * 3600.0
"""Snapshots that nobody opened for so long are removed when another one is written."""
Make = Callable[[pa.Table | None], pa.Table]


def snapshot(name: str, key: str, make: Make) -> pa.Table:
    """Return the table that `make` gives, mapped from this machine's copy if it has one; else it is made and kept.

    One process of a machine makes it while the others wait. Where the copy cannot be kept, as on a full disk, the table
    is returned as it was made.

    Args:
        name: What the table is of, as a file's name; one snapshot of each name is kept.
        key: Digest of everything that the table follows from.
        make: Makes the table; is given the snapshot of this name that has another key, if there is one.
    """
    try:
        folder = _own_folder()
    except OSError as error:
        logger.warning("no snapshot of %s is kept: %s", name, error)
        return make(None)
    found = _open(folder, name, key)
    if found is not None:
        return found
    with _locked(folder / f"{name}.lock"):
        found = _open(folder, name, key)
        if found is not None:
            return found
        table = make(_open(folder, name))
        try:
            _write(folder, name, key, table)
        except OSError as error:
            logger.warning("no snapshot of %s is kept: %s", name, error)
            return table
        del table
    found = _open(folder, name, key)
    return make(None) if found is None else found


def _own_folder() -> Path:
    """Return the folder of snapshots, which nobody else may write."""
    named = os.environ.get("SALMONN_SNAPSHOTS")
    if named:
        return _made(Path(named))
    cache = os.environ.get("XDG_CACHE_HOME")
    with suppress(OSError, RuntimeError):  # no home
        return _made((Path(cache) if cache else Path.home() / ".cache") / "salmonn")
    return _made(Path(tempfile.gettempdir()) / f"salmonn-{os.getuid()}")


def _made(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022:
        raise PermissionError(f"{folder}: others may write there")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder}: cannot be written")
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Be the only process of the machine in the block; a dead process holds nothing."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _open(folder: Path, name: str, key: str = "") -> pa.Table | None:
    """Map the newest snapshot of a name, of this key if one is given; None if there is none that is undamaged."""
    for path in sorted(folder.glob(f"{name}.{key or '*'}.*{SUFFIX}"), key=_changed, reverse=True):
        try:
            with pa.memory_map(str(path)) as file:
                if f"{zlib.crc32(file.read_buffer()):08x}" == path.name.removesuffix(SUFFIX).rpartition(".")[2]:
                    file.seek(0)
                    table = pa.ipc.open_file(file).read_all()
                    with suppress(FileNotFoundError):  # by now; what is mapped stays
                        os.utime(path)
                    return table
        except FileNotFoundError:  # another process has put a newer one in its place
            continue
        except (OSError, pa.ArrowInvalid) as error:
            logger.warning("%s: %s", path, error)
        path.unlink(missing_ok=True)
    return None


def _changed(path: Path) -> float:
    """Return when a file was written or opened last, 0 if it is gone."""
    with suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0


def _write(folder: Path, name: str, key: str, table: pa.Table) -> None:
    table = table.combine_chunks()
    target = folder / f"{name}.{key}.new"
    with (
        staged_file(str(target)) as path,
        pa.OSFile(str(path), "wb") as file,
        pa.ipc.new_file(file, table.schema) as writer,
    ):
        writer.write_table(table)
    with pa.memory_map(str(target)) as file:
        checksum = zlib.crc32(file.read_buffer())
    target.replace(folder / f"{name}.{key}.{checksum:08x}{SUFFIX}")
    _remove_old(folder, name, key)


def _remove_old(folder: Path, name: str, key: str) -> None:
    """Remove what is no longer wanted; processes that have it mapped keep it."""
    oldest = time.time() - KEPT_SECONDS
    for path in folder.iterdir():
        is_other = path.name.startswith(f"{name}.") and path.suffix == SUFFIX and f".{key}." not in path.name
        is_left = path.suffix in (SUFFIX, ".new") or path.name.startswith(TEMPORARY_PREFIX)
        with suppress(OSError):
            if is_other or (is_left and path.stat().st_mtime < oldest):
                path.unlink()
