"""Every file of the data path is opened here: one function from URI to (filesystem, path), and whole-file writes.

A URI is a local path, `file://…`, `s3://bucket/key?region=…` or `gs://bucket/key`. Keys and endpoints come from the
environment and the URI's query, never from objects that travel to workers, to which URIs are passed. A recording may
also be a member of a tar, named before the query: `s3://bucket/a.tar!x/y.flac?region=…`.
"""

import json
import os
import posixpath
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from pyarrow import fs

from encoders.sound.recordings import open_recording, open_regular
from pipelines.errors import MissingError, UserError
from pipelines.storage.uris import is_local, resolve

TEMPORARY_PREFIX = ".tmp-"
COPY_NBYTES = 8 << 20
CLAIM_SECONDS = 600.0
"""Time after which a claim on an object counts as left behind; uploading a plan takes seconds."""


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


def list_files(uri: str, suffix: str = "") -> list[tuple[str, int, int]]:
    """Return name, bytes and time of last change (nanoseconds) of what `list_names` lists, in its order."""
    filesystem, path = resolve(uri)
    infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    found = ((info.base_name, int(info.size), int(info.mtime_ns or 0)) for info in infos if info.is_file)
    return sorted(one for one in found if one[0].endswith(suffix) and not one[0].startswith(TEMPORARY_PREFIX))


def list_folders(uri: str) -> list[str]:
    """Return the sorted names of the folders in a folder; none if it does not exist."""
    filesystem, path = resolve(uri)
    infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    names = (info.base_name for info in infos if info.type == fs.FileType.Directory)
    return sorted(name for name in names if not name.startswith(TEMPORARY_PREFIX))


def list_below(uri: str, suffixes: tuple[str, ...]) -> list[str]:
    """Return the sorted paths below a folder, at any depth, of files whose names end so in upper or lower case.

    Files and folders whose names begin with a dot are left out.
    """
    filesystem, path = resolve(uri)
    infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=True))
    files = (info.path[len(path) :].lstrip("/") for info in infos if info.type == fs.FileType.File)
    names = (name for name in files if not any(part.startswith(".") for part in name.split("/")))
    return sorted(name for name in names if name.lower().endswith(suffixes))


def open_file(uri: str) -> BinaryIO:
    """Open a file, or a member of a tar (`archive.tar!member`), for reading with random access.

    Raises:
        MissingError: If there is none, naming the URI.
        UnreadableError: If it is a pipe or device, or not to be had from its archive.
    """
    try:
        return open_recording(uri, _open_input)
    except FileNotFoundError:
        raise MissingError(f"{uri}: no such file") from None


def read_samples(path: str, nbytes: int) -> tuple[int, list[bytes]] | None:
    """Return a file's length and so many bytes from its beginning, middle and end; None if it is not a plain local one.

    It takes a tenth of the processor time of `open_file` and reads, which say what is wrong with all others.

    Args:
        path: Absolute, on this machine.
        nbytes: Of each of the samples, which do not overlap: a short file has fewer, and less in its last one.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return None
        starts = sample_starts(status.st_size, nbytes)
        return status.st_size, [os.pread(descriptor, nbytes, start) for start in starts]
    except OSError:
        return None
    finally:
        os.close(descriptor)


def sample_starts(file_nbytes: int, nbytes: int) -> list[int]:
    """Return where samples of so many bytes from a file's beginning, middle and end begin."""
    return sorted({0, max(0, (file_nbytes - nbytes) // 2), max(0, file_nbytes - nbytes)})


def open_copy(uri: str) -> BinaryIO:
    """Open a local file as it is, and another one as a temporary copy of this machine, fetched in one pass.

    Raises:
        MissingError: If there is none.
    """
    if is_local(uri):
        return open_file(uri)
    filesystem, path = resolve(uri)
    file = tempfile.TemporaryFile(prefix="salmonn-")  # noqa: SIM115 - it is the caller's
    with filesystem.open_input_stream(path) as stream:
        shutil.copyfileobj(stream, file, COPY_NBYTES)
    file.flush()
    return cast(BinaryIO, file)


def _open_input(uri: str) -> BinaryIO:
    filesystem, path = resolve(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        return open_regular(path)
    return cast(BinaryIO, filesystem.open_input_file(path))


def read_bytes(uri: str) -> bytes:
    with open_file(uri) as file:
        return file.read()


def read_json(uri: str) -> Any:
    """Return what a JSON file holds.

    Raises:
        MissingError: If there is none.
        UserError: If it is not JSON, naming the file.
    """
    data = read_bytes(uri)  # whose MissingError is a ValueError too
    try:
        return json.loads(data)
    except ValueError as error:  # of JSON and of UTF-8
        raise UserError(f"{uri}: damaged, not JSON ({error})") from None


@contextmanager
def staged_file(uri: str, *, exclusive: bool = False) -> Iterator[Path]:
    """Yield a local path to write; on success the finished file appears at `uri` whole, on an exception nothing does.

    With `exclusive` a file that is there already, or that another writer is about to put there, is a FileExistsError.
    Locally the temporary file is beside its target and is fsynced and renamed. On an object store the finished bytes
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
            if exclusive:
                target.hardlink_to(staged)
            else:
                staged.replace(target)
            _fsync(target.parent)
        finally:
            staged.unlink(missing_ok=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder) / posixpath.basename(path)
        yield staged
        with _claim(filesystem, path) if exclusive else nullcontext():
            fs.copy_files(str(staged), path, source_filesystem=fs.LocalFileSystem(), destination_filesystem=filesystem)


@contextmanager
def _claim(filesystem: fs.FileSystem, path: str) -> Iterator[None]:
    """Be the only writer of an object that is not there yet.

    pyarrow has no conditional upload, but listings are consistent: of two writers that each put a claim beside the
    object and then look for others, the later one sees the earlier one's. A killed writer's claim counts for a while.
    """
    folder, name = posixpath.split(path)
    claims = f"{TEMPORARY_PREFIX}claim-{name}-"
    own = f"{folder}/{claims}{uuid.uuid4().hex}"
    with filesystem.open_output_stream(own) as file:
        file.write(b"claimed")  # not every store lists an empty object as a file
    try:
        oldest = time.time() - CLAIM_SECONDS
        for info in filesystem.get_file_info(fs.FileSelector(folder)):
            rival = info.base_name.startswith(claims) and info.path != own and info.mtime_ns / 1e9 > oldest
            if rival or info.base_name == name:
                raise FileExistsError(f"{path}: is there already, or about to be")
        yield
    finally:
        filesystem.delete_file(own)


def list_unfinished(uri: str) -> dict[str, float]:
    """Return a folder's temporary files and the seconds since each was last written to; object stores have none."""
    if not is_local(uri):
        return {}
    paths = sorted(Path(resolve(uri)[1]).glob(f"{TEMPORARY_PREFIX}*"))
    return {path.name: time.time() - path.stat().st_mtime for path in paths}


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


def delete_file(uri: str) -> None:
    filesystem, path = resolve(uri)
    filesystem.delete_file(path)


def delete_folder(uri: str) -> None:
    """Remove a folder and all that is in it; of a link in it the link goes, not what it leads to.

    Raises:
        UserError: If the folder is itself a link.
    """
    filesystem, path = resolve(uri)
    if is_local(uri) and Path(path).is_symlink():
        raise UserError(f"{uri}: a link to {Path(path).resolve()}; name that folder")
    filesystem.delete_dir(path)


def folder_nbytes(uri: str) -> int:
    """Return the bytes of all files in a folder and the folders in it; 0 if it does not exist."""
    filesystem, path = resolve(uri)
    infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=True))
    return sum(info.size or 0 for info in infos)


def remove_empty(uri: str) -> None:
    """Remove a folder of this machine if it is there and empty; object stores have none that are."""
    if is_local(uri):
        with suppress(OSError):
            Path(resolve(uri)[1]).rmdir()


def write_bytes(uri: str, data: bytes, *, exclusive: bool = False) -> None:
    """Write a whole file: readers see the old one or the new one, never a part."""
    with staged_file(uri, exclusive=exclusive) as path:
        path.write_bytes(data)
