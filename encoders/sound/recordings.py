"""Recordings in place: a file, or a member of a tar archive read in place, `tars/a.tar!folder/name.flac`.

In a URI the member comes before the query: `s3://bucket/a.tar!x.flac?region=…`. What stands before the first `.tar!` is
the archive. Nothing is ever unpacked, so members' names, hostile ones too, are only looked up.
"""

import io
import os
import posixpath
import re
import stat
import tarfile
from collections.abc import Callable, Hashable
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import BinaryIO, cast

OpenFile = Callable[[str], BinaryIO]

INDEXED_ARCHIVES = 64
"""Archives whose members a process remembers, about 250 bytes each; the one not asked for longest is forgotten."""
SCAN_BUFFER_BYTES = 2**20
"""Read-ahead over an archive in an object store: a request's latency costs about as much as this many bytes."""

_MEMBER = re.compile(r"(.+?\.(?:tar|tar\.(?:gz|bz2|xz|zst)|tgz))!(.+)", re.DOTALL | re.IGNORECASE)
_NO_MEMBER = "no such member"
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd

_Place = tuple[int, int] | str
"""Offset and length of a member's bytes, or why it cannot be read."""


class UnreadableError(ValueError):
    """A recording that no second try can open: no file, or not to be had from its archive."""

    def __init__(self, recording: str, reason: str) -> None:
        super().__init__(recording, reason)
        self.reason = reason

    @property
    def is_absent(self) -> bool:
        """Say whether its archive is there and whole, and holds nothing of this name."""
        return self.reason == _NO_MEMBER

    def __str__(self) -> str:
        return ": ".join(self.args)


def open_local(recording: str) -> BinaryIO:
    """Open a file of this machine, or a member of a tar, for reading with random access. Raises as `open_recording`."""
    return open_recording(recording, open_regular)


def open_regular(path: str) -> BinaryIO:
    """Open a file of this machine for reading.

    Raises:
        OSError: As `open` does.
        UnreadableError: If it is a pipe or a device, which could keep its reader waiting for ever.
    """
    try:
        mode = Path(path).stat().st_mode
    except ValueError as error:  # a NUL, or characters outside the file system's encoding
        raise UnreadableError(path, f"no file can have this name ({error})") from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UnreadableError(path, "is a pipe or a device")
    return Path(path).open("rb")


def open_recording(recording: str, open_file: OpenFile) -> BinaryIO:
    """Open `archive.tar!member` or, with `open_file`, anything else; a member reads like a file of its own.

    A file whose own name looks like a member's is opened where there is no such archive. The first member asked of an
    archive costs a small read per member, later ones nothing. An archive must not change while it is in use.

    Raises:
        FileNotFoundError: If there is no such file or archive.
        OSError: If storage fails.
        UnreadableError: If the archive is compressed, damaged or no tar, or has no such whole file in it.
    """
    archive, member = split_member(recording)
    if not member:
        return open_file(recording)
    try:
        file = open_file(archive)
    except FileNotFoundError:
        return open_file(recording)
    try:
        place = _tar_index(_version(archive, file)).find(member, file)
        if isinstance(place, str):
            raise UnreadableError(recording, place)
    except BaseException:
        file.close()
        raise
    return io.BufferedReader(_Member(file, *place))


def split_member(recording: str) -> tuple[str, str]:
    """Return (archive, member), the archive with the URI's query; (recording, "") for what is no member of a tar."""
    base, mark, query = recording.partition("?") if "://" in recording else (recording, "", "")
    match = _MEMBER.fullmatch(base)
    return (match[1] + mark + query, match[2]) if match else (recording, "")


class _Member(io.RawIOBase):
    """A range of an archive; closing it closes the archive."""

    def __init__(self, file: BinaryIO, offset: int, nbytes: int) -> None:
        self._file = file
        self._offset = offset
        self._nbytes = nbytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._nbytes)[whence]
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed's Buffer has no length
        self._file.seek(self._offset + self._position)
        data = self._file.read(max(0, min(len(buffer), self._nbytes - self._position)))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


class _TarIndex:
    """Where an archive's members are, found when the first is asked for, by one thread while others wait."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._places: dict[str, _Place] | None = None
        self._missing = ""

    def find(self, member: str, file: BinaryIO) -> _Place:
        with self._lock:
            if self._places is None:
                # Unbuffered files are in object stores, where each small read is a request.
                is_buffered = isinstance(file, io.BufferedIOBase)
                reader = file if is_buffered else io.BufferedReader(cast(io.RawIOBase, file), SCAN_BUFFER_BYTES)
                self._places, self._missing = _scan(reader)
                if isinstance(reader, io.BufferedReader) and not is_buffered:
                    reader.detach()
        return self._places.get(posixpath.normpath(member), self._missing)


@lru_cache(INDEXED_ARCHIVES)
def _tar_index(version: Hashable) -> _TarIndex:
    return _TarIndex()


def _version(archive: str, file: BinaryIO) -> Hashable:
    """Return what changes when an archive is replaced; of one in an object store that is its length."""
    try:
        info = os.fstat(file.fileno())
    except io.UnsupportedOperation:
        return archive, file.seek(0, io.SEEK_END)
    return info.st_dev, info.st_ino, info.st_mtime_ns, info.st_size


def _scan(file: BinaryIO) -> tuple[dict[str, _Place], str]:
    """Return the members of a tar (of two with one name the last) and what to say of names that are not in it."""
    nbytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    if file.read(6).startswith(_COMPRESSED):
        return {}, "the archive is compressed, so that no member can be read alone; it must be a plain .tar"
    file.seek(0)
    places: dict[str, _Place] = {}
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
            # A size that leads back or behind the archive is the last to be believed.
            while end <= nbytes and (member := tar.next()) is not None and tar.offset > end:
                tar.members.clear()  # type: ignore[attr-defined]
                places[posixpath.normpath(member.name)] = _place(member, nbytes)
                end = tar.offset
    except (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        if not places:
            return {}, f"the archive is not a tar ({error})"
    file.seek(min(end, nbytes))
    is_whole = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    return places, _NO_MEMBER if is_whole else f"{_NO_MEMBER}; the archive is cut off or damaged at byte {end}"


def _place(member: tarfile.TarInfo, archive_nbytes: int) -> _Place:
    """Return (offset, nbytes) of a member, or why it cannot be read."""
    if not member.isreg() or member.issparse():
        kinds = {tarfile.DIRTYPE: "a folder", tarfile.SYMTYPE: "a link", tarfile.LNKTYPE: "a link"}
        return f"the member is {kinds.get(member.type, 'no regular file')}"
    there = archive_nbytes - member.offset_data
    if not 0 <= member.size <= there:
        return f"the archive is cut off: it holds {max(0, there)} of the member's {member.size} bytes"
    return member.offset_data, member.size
