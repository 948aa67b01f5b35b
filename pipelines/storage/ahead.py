"""Reading ahead in threads; nothing here waits for ever.

The threads are daemons: one that hangs in a dead store keeps neither an error nor the end of the process waiting.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class DaemonPool:
    """Threads like the ones of `concurrent.futures`, but a process ends without waiting for them."""

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
