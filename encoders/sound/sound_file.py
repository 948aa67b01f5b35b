"""Sound files opened for reading; files that would give wrong samples in silence are refused."""

import errno
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import soundfile

from encoders.audio import SAMPLE_RATE_HZ, AudioError
from encoders.sound.containers import DamagedError, true_frames
from encoders.sound.recordings import OpenFile, UnreadableError, open_local

_CONTAINERS = {"WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3"}


_RATES_HZ = (4_000, 384_000)


_MAX_CHANNELS = 8


_MAX_RESAMPLE_TAPS = 20_000_000  # the filter bank of a rate like 44,101 Hz would take gigabytes


_READ_AHEAD_BYTES = 131_072  # decoders read 8 KB or, MP3's, 70 bytes at a time, on an object store a request each


_OPEN_REASONS = {
    errno.ENOENT: "no such file",
    errno.ENOTDIR: "no such file",
    errno.EISDIR: "is a folder",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ELOOP: "its symbolic links lead in a circle",
    errno.ENAMETOOLONG: "its name is too long",
}


def probe_seconds(recording: str, *, open_file: OpenFile = open_local) -> float:
    """Return a recording's length as its header states it, without decoding.

    Raises:
        AudioError: If the header is not plausible, contradicts the file's size or does not state a length.
        OSError: If storage fails while reading.
    """
    with open_sound(recording, open_file) as (sound, _, total):
        if total is None:
            raise AudioError(recording, "length", "the header of this streamed file does not state one")
        return float(total / sound.samplerate)


class SoundFile(soundfile.SoundFile):  # type: ignore[misc]  # soundfile is untyped
    """Reads without the seek that soundfile does after each read, which fails at the end of a streamed FLAC."""

    def seekable(self) -> bool:
        return False


class _WatchedFile:
    """Reads ahead, and remembers that storage failed: libsndfile takes a failed read for the end of the file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, io.SEEK_END)
        self._position = 0
        self._block = b""
        self._block_start = 0
        self.error: OSError | None = None

    def read(self, count: int) -> bytes:
        place = self._position - self._block_start
        data = self._block[place : place + count] if place >= 0 else b""
        if len(data) < min(count, self._size - self._position):
            try:
                self._file.seek(self._position)
                self._block, self._block_start = self._file.read(max(count, _READ_AHEAD_BYTES)), self._position
            except OSError as error:
                self.error = error
                return b""
            data = self._block[:count]
        self._position += len(data)
        return data

    def readinto(self, buffer: memoryview) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = max(0, offset + (0, self._position, self._size)[whence])
        return self._position

    def tell(self) -> int:
        return self._position


@contextmanager
def open_sound(recording: str, open_file: OpenFile) -> Iterator[tuple[SoundFile, _WatchedFile, int | None]]:
    """Open a recording and give its length in frames, None if its header leaves it open.

    What is wrong with its headers, or found to be wrong inside the block, becomes AudioError.
    """
    try:
        file = open_file(recording)
    except UnreadableError as error:
        raise AudioError(recording, "open", error.reason) from error
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else _OPEN_REASONS.get(error.errno or 0)
        if reason is None:
            raise
        raise AudioError(recording, "open", reason) from error
    with file:
        watched = _WatchedFile(file)
        try:
            with SoundFile(watched) as sound:
                _check_header(sound, recording)
                position = watched.tell()
                total = true_frames(sound.format, watched, sound.frames)
                watched.seek(position)
                yield sound, watched, total
        except soundfile.LibsndfileError as error:
            if watched.error is None:
                raise AudioError(recording, "decode", error.error_string) from error
        except DamagedError as error:
            if watched.error is None:
                raise AudioError(recording, "length", str(error)) from error
        except AudioError:
            if watched.error is None:
                raise
    if watched.error is not None:
        raise watched.error


def _check_header(sound: SoundFile, recording: str) -> None:
    if sound.format not in _CONTAINERS:
        raise AudioError(recording, "format", f"{sound.format} is not one of {', '.join(sorted(_CONTAINERS))}")
    rate_hz = sound.samplerate
    if not _RATES_HZ[0] <= rate_hz <= _RATES_HZ[1]:
        raise AudioError(recording, "rate", f"{rate_hz} Hz is not between {_RATES_HZ[0]} and {_RATES_HZ[1]}")
    shared = math.gcd(rate_hz, SAMPLE_RATE_HZ)
    if (rate_hz // shared) * (SAMPLE_RATE_HZ // shared) > _MAX_RESAMPLE_TAPS:
        raise AudioError(recording, "rate", f"{rate_hz} Hz has no small ratio to {SAMPLE_RATE_HZ} Hz")
    if sound.channels > _MAX_CHANNELS:
        raise AudioError(recording, "format", f"{sound.channels} channels, more than {_MAX_CHANNELS}")
    if sound.frames <= 0:
        raise AudioError(recording, "length", "the header states no samples")
