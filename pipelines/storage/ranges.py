"""Ranged reads in threads, and reading ahead; nothing here waits for ever.

Threads are daemons: one that hangs in a dead store keeps neither an error nor the end of the process waiting.
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock
from typing import Any, BinaryIO

import pyarrow as pa

from pipelines.storage.files import open_file

GAP_BYTES = 1 << 20
"""In an object store two ranges nearer than this are fetched as one: a request's latency costs about as much."""


@dataclass(frozen=True)
class Extent:
    """Bytes of a file from `offset` on, and the buffers that they fill one after the other."""

    offset: int
    buffers: Sequence[memoryview]

    @property
    def end(self) -> int:
        return self.offset + sum(buffer.nbytes for buffer in self.buffers)


class RangedFile:
    """A file that several threads read at a time; closed when the last of them lets go of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file: Any = file

    def __del__(self) -> None:
        self._file.close()

    def read(self, extents: Iterable[Extent]) -> None:
        """Fill the extents' buffers: locally without a copy, in an object store with few requests.

        Raises:
            EOFError: If the file ends before one of them does.
            OSError: If storage fails.
        """
        if isinstance(self._file, pa.NativeFile):
            for near in _near(extents):
                self._fetch(near)
            return
        for extent in extents:
            self._fill(extent)

    def _fill(self, extent: Extent) -> None:
        buffers, offset = extent.buffers, extent.offset
        while offset < extent.end:  # some filesystems give less than is asked for
            nbytes = os.preadv(self._file.fileno(), buffers, offset)
            if not nbytes:
                raise EOFError(f"ends before byte {extent.end}")
            buffers, offset = _after(buffers, nbytes), offset + nbytes

    def _fetch(self, extents: Sequence[Extent]) -> None:
        start, end = extents[0].offset, extents[-1].end
        data = memoryview(self._file.read_at(end - start, start))
        if len(data) < end - start:
            raise EOFError(f"ends before byte {end}")
        for extent in extents:
            position = extent.offset - start
            for buffer in extent.buffers:
                buffer[:] = data[position : position + len(buffer)]
                position += len(buffer)


def _after(buffers: Sequence[memoryview], nbytes: int) -> list[memoryview]:
    """Return what is left of buffers whose first bytes are filled."""
    left = []
    for buffer in buffers:
        left.append(buffer[nbytes:])
        nbytes = max(0, nbytes - len(buffer))
    return left


def _near(extents: Iterable[Extent]) -> list[list[Extent]]:
    groups: list[list[Extent]] = []
    for extent in sorted(extents, key=lambda extent: extent.offset):
        if groups and extent.offset - groups[-1][-1].end <= GAP_BYTES:
            groups[-1].append(extent)
        else:
            groups.append([extent])
    return groups


class OpenFiles:
    """Files kept open for several threads, at most `limit`; the one not asked for longest is let go."""

    def __init__(self, limit: int, open_file: Callable[[str], BinaryIO] = open_file) -> None:
        self._limit, self._open = limit, open_file
        self._files: OrderedDict[str, Future[RangedFile]] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._files)

    def get(self, uri: str) -> RangedFile:
        """Return a file to read from, opened once for all who ask; raises what opening it raises."""
        with self._lock:
            file = self._files.get(uri)
            is_new = file is None
            if file is None:
                file = self._files[uri] = Future()
            self._files.move_to_end(uri)
            while len(self._files) > self._limit:
                self._files.popitem(last=False)
        if is_new:
            try:
                file.set_result(RangedFile(self._open(uri)))
            except BaseException as error:  # it is raised below, and for all who wait
                with self._lock:
                    self._files.pop(uri, None)
                file.set_exception(error)
        return file.result()
