"""Memory that one batch after another is read into."""

import weakref
from collections import defaultdict, deque
from typing import Any

import numpy as np

FREE_BLOCKS = 4
"""Kept of each size."""
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


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
