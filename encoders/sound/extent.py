"""How much sound a file holds, as far as it shows before any of it is decoded."""

from dataclasses import dataclass
from typing import Protocol

UNKNOWN_FRAMES = 2**62
"""As many or more (2^63 - 1) libsndfile states of what it knows no length."""


class Seekable(Protocol):
    """What is needed of an open file."""

    def read(self, count: int, /) -> bytes: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def tell(self) -> int: ...


class DamagedError(ValueError):
    """A file contradicts itself."""


@dataclass(frozen=True)
class Extent:
    """What a file's headers say of its length."""

    frames: int | None
    """Samples per channel, None where the headers leave them open."""
    seekable: int | None = None
    """The last sample that libsndfile finds by itself; what comes later must be read up to. None: it finds all."""
    doubt: str = ""
    """Why the end of what is heard may not be the recording's, though nothing is damaged."""
    missing_bytes: int = 0
    """By how much libsndfile must think an MP3 longer than it is to read all of it."""
    patch: tuple[int, bytes] | None = None
    """Where libsndfile must read other bytes than the file's to read all of it, and which."""
