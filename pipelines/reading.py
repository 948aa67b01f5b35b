"""Ranged reads in threads, and reading ahead; nothing here waits for ever.

Threads are daemons: one that hangs in a dead store keeps neither an error nor the end of the process waiting.
"""

import os
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, BinaryIO, Generic, TypeVar

import numpy as np
import pyarrow as pa

from pipelines import storage
from pipelines.config import require_range

GAP_BYTES = 1 << 20
"""In an object store two ranges nearer than this are fetched as one: a request's latency costs about as much."""

FREE_BLOCKS = 4
"""Kept of each size."""

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Result = TypeVar("Result")


@dataclass(frozen=True)
class ReadConfig:
    threads: int = 4
    """[count] Clips read at a time; an object store far away wants more, a local disk no more than its cores."""
    ahead_steps: int = 2
    """[steps] Steps read before they are needed; their features are held in memory as they are stored."""
    timeout_seconds: float = 300.0
    """[seconds] Longest that a batch's clips may take before an error names the one that storage does not give; a whole
    step's may take twice as long."""
    verify_fraction: float = 0.05
    """[fraction] Share of the clips whose checksums are compared, the same ones at every reading; the others are read
    only as far as they are heard. `salmonn cache verify` compares all."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require_range(self, ("threads", "ahead_steps"), low=1)
        require_range(self, ("timeout_seconds",), low=0.001)
        require_range(self, ("verify_fraction",), low=0, high=1)


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

    def __init__(self, limit: int, open_file: Callable[[str], BinaryIO] = storage.open_file) -> None:
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


class BatchMemory:
    """Memory for batches that come and go: what nobody holds any more serves again.

    Fresh pages take longer than the bytes that are read into them. Blocks are powers of two long, so that batches of
    about one length share them; what a batch never touches of its block takes no memory.
    """

    def __init__(self) -> None:
        self._free: defaultdict[int, deque[Bytes]] = defaultdict(lambda: deque(maxlen=FREE_BLOCKS))

    def empty(self, nbytes: int) -> Bytes:
        """Return an array [nbytes] of anything; its block is free again once no view or tensor of it is left."""
        size = 1 << (nbytes - 1).bit_length()
        free = self._free[size]
        try:
            block = free.pop()
        except IndexError:
            block = np.empty(size, np.uint8)
        lent = np.frombuffer(block.data, np.uint8, nbytes)  # views of it hold it, those of a slice the block
        weakref.finalize(lent, free.append, block).atexit = False
        return lent


class DaemonPool:
    """Threads like those of `concurrent.futures`, but for that a process ends without waiting for them."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        for _ in range(threads):
            Thread(target=_work, args=(self._jobs,), daemon=True).start()

    def __del__(self) -> None:
        for _ in range(self._threads):
            self._jobs.put(None)

    def submit(self, function: Callable[..., Result], *args: Any) -> "Future[Result]":
        """Call the function in a thread, after what was submitted before."""
        future: Future[Result] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(*args))
            except BaseException as error:  # it is raised where the result is asked for
                future.set_exception(error)

        self._jobs.put(job)
        return future


def _work(jobs: "SimpleQueue[Callable[[], None] | None]") -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # or the last one's buffers would stay until the next


class ReadAhead(Generic[Result]):
    """What `read(step)` gives, step by step, read by a thread of its own before it is asked for."""

    def __init__(
        self, read: Callable[[int], Result], steps: range, *, ahead_steps: int, timeout_seconds: float
    ) -> None:
        self._read = read
        self._timeout_seconds = timeout_seconds
        self._steps = iter(steps)
        self._pool = DaemonPool(1)
        self._pending: deque[tuple[int, Future[Result]]] = deque()
        for _ in range(ahead_steps):
            self._submit_next()

    def _submit_next(self) -> None:
        for step in self._steps:
            self._pending.append((step, self._pool.submit(self._read, step)))
            return

    def take(self) -> Result:
        """Return the next step's, waiting for it.

        Raises:
            TimeoutError: If it has not been read in time.
            Exception: What its reading raised.
        """
        step, future = self._pending.popleft()
        try:
            result = future.result(self._timeout_seconds)
        except TimeoutError:
            if future.done():  # the reading's own
                raise
            message = f"step {step}: nothing was read for {self._timeout_seconds:g} s; storage or its reader is stuck"
            raise TimeoutError(message) from None
        self._submit_next()
        return result
