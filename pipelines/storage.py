"""Every file of the data path is opened here: one function from URI to (filesystem, path), and whole-file writes.

A URI is a local path, `file://…`, `s3://bucket/key?region=…` or `gs://bucket/key`. Keys and endpoints come from the
environment and the URI's query, never from objects that travel to workers, to which URIs are passed.
"""

import os
import posixpath
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

TEMPORARY_PREFIX = ".tmp-"


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the filesystem of a URI and the path in it; a local path becomes absolute.

    Raises:
        ValueError: If the scheme is unknown or the URI malformed.
    """
    if not uri:
        raise ValueError("an empty path was given")
    if "://" not in uri:
        return fs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    base, _, query = uri.partition("?")
    scheme, _, path = base.partition("://")
    return _filesystem(scheme, query, uri), "/" + path.lstrip("/") if scheme == "file" else path.rstrip("/")


@lru_cache
def _filesystem(scheme: str, query: str, uri: str) -> fs.FileSystem:
    try:
        return fs.FileSystem.from_uri(uri)[0]
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{uri}: not a path or URI that can be read ({error})") from None


def full_path(uri: str) -> str:
    """Return a URI as it is and a local path from the root, so that it means the same to every process."""
    return uri if "://" in uri else resolve(uri)[1]


def join(uri: str, *names: str) -> str:
    """Return the URI of a file below a folder's URI; a query stays at the end.

    Raises:
        ValueError: If a name would lead out of the folder.
    """
    base, mark, query = uri.partition("?") if "://" in uri else (uri, "", "")
    inner = posixpath.normpath(posixpath.join(*names))
    if inner.startswith(("/", "..")):
        raise ValueError(f"{posixpath.join(*names)}: leads out of {uri}")
    return base.rstrip("/") + "/" + inner + mark + query


def is_local(uri: str) -> bool:
    """Tell whether a URI lies on a filesystem of this machine."""
    return isinstance(resolve(uri)[0], fs.LocalFileSystem)


def file_exists(uri: str) -> bool:
    filesystem, path = resolve(uri)
    return bool(filesystem.get_file_info(path).type == fs.FileType.File)


def folder_exists(uri: str) -> bool:
    filesystem, path = resolve(uri)
    return bool(filesystem.get_file_info(path).type == fs.FileType.Directory)


def file_nbytes(uri: str) -> int:
    filesystem, path = resolve(uri)
    return int(filesystem.get_file_info(path).size or 0)


def list_names(uri: str, suffix: str = "") -> list[str]:
    """Return the sorted names of a folder's finished files, temporary ones left out; none if it does not exist."""
    filesystem, path = resolve(uri)
    infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    names = (info.base_name for info in infos if info.type == fs.FileType.File)
    return sorted(name for name in names if name.endswith(suffix) and not name.startswith(TEMPORARY_PREFIX))


def list_folders(uri: str) -> list[str]:
    """Return the sorted names of the folders in a folder; none if it does not exist."""
    filesystem, path = resolve(uri)
    infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    names = (info.base_name for info in infos if info.type == fs.FileType.Directory)
    return sorted(name for name in names if not name.startswith(TEMPORARY_PREFIX))


def open_file(uri: str) -> BinaryIO:
    """Open a file for reading with random access.

    Raises:
        FileNotFoundError: If there is none, naming the URI.
    """
    filesystem, path = resolve(uri)
    try:
        if isinstance(filesystem, fs.LocalFileSystem):
            return Path(path).open("rb")
        return cast(BinaryIO, filesystem.open_input_file(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"{uri}: no such file") from None


def read_bytes(uri: str) -> bytes:
    with open_file(uri) as file:
        return file.read()


@contextmanager
def staged_file(uri: str) -> Iterator[Path]:
    """Yield a local path to write; on success the finished file appears at `uri` whole, on an exception nothing does.

    Locally the temporary file lies beside its target and is fsynced and renamed. On an object store the finished bytes
    are uploaded in one go: a client that is writing publishes a truncated object when an exception passes through it.
    """
    filesystem, path = resolve(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = target.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}-{target.name}")
        try:
            yield staged
            _fsync(staged)
            staged.replace(target)
            _fsync(target.parent)
        finally:
            staged.unlink(missing_ok=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder) / posixpath.basename(path)
        yield staged
        fs.copy_files(str(staged), path, source_filesystem=fs.LocalFileSystem(), destination_filesystem=filesystem)


def remove_stale(uri: str, *, older_than_seconds: float) -> None:
    """Remove what writers that were killed left unfinished in a folder; on object stores they leave nothing."""
    if not is_local(uri):
        return
    oldest = time.time() - older_than_seconds
    for path in Path(resolve(uri)[1]).glob(f"{TEMPORARY_PREFIX}*"):
        if path.stat().st_mtime < oldest:
            path.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole file: readers see the old one or the new one, never a part."""
    with staged_file(uri) as path:
        path.write_bytes(data)


def write_table(uri: str, table: pa.Table) -> None:
    """Write a Parquet file whole; the same table gives the same bytes."""
    with staged_file(uri) as path:
        pq.write_table(table, path, compression="zstd")


def open_parquet(uri: str) -> pq.ParquetFile:
    """Open a Parquet file.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not Parquet.
    """
    filesystem, path = resolve(uri)
    if not file_exists(uri):
        raise FileNotFoundError(f"{uri}: no such file")
    try:
        return pq.ParquetFile(filesystem.open_input_file(path))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{uri}: not a Parquet file ({error})") from None
