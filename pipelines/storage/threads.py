"""A function over many items in threads, with its results in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def run_threads(function: Callable[[ItemT], ResultT], items: Iterable[ItemT], *, threads: int) -> Iterator[ResultT]:
    """Yield a function's results in the order of the items, of which at most 2 × `threads` are taken ahead."""
    with ThreadPoolExecutor(threads) as pool:
        running: deque[Future[ResultT]] = deque()
        try:
            for item in items:
                running.append(pool.submit(function, item))
                if len(running) > 2 * threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()
