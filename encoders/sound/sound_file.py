"""Sound files opened for reading; files that would give wrong samples in silence are refused."""

import errno
import io
import math
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import PurePosixPath
from typing import BinaryIO

import soundfile

from encoders.audio import SAMPLE_RATE_HZ, AbsentError, AudioError
from encoders.sound.containers import is_read, measure
from encoders.sound.extent import DamagedError, Extent
from encoders.sound.mp3 import find_start
from encoders.sound.recordings import OpenFile, UnreadableError, open_local

_CONTAINERS = {"WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3"}


_RATES_HZ = (4_000, 384_000)


_MAX_CHANNELS = 8


_MAX_RESAMPLE_TAPS = 20_000_000  # the filter bank of a rate like 44,101 Hz would take gigabytes


_READ_AHEAD_BYTES = 131_072  # decoders read 8 KB or, MP3's, 70 bytes at a time, on an object store a request each


_MEASURED_AT_ONCE = 2**18  # frames


_MISCOUNTED = "Granule position is nonsensical"
"""In libsndfile's log of an Ogg Vorbis that was cut without decoding: it hears what comes before sample 0 when it
reads, but not when it seeks."""


_TRUE_REASONS = {
    "File does not exist or is not a regular file (possibly a pipe?).": "it begins like an MP3 and holds no whole frame"
}
"""What libsndfile says, and what it means of a file that is open."""
_OPEN_REASONS = {
    errno.EISDIR: "is a folder",
    errno.ELOOP: "its symbolic links lead in a circle",
    errno.ENAMETOOLONG: "its name is too long",
}


def probe_seconds(recording: str, *, open_file: OpenFile = open_local) -> float:
    """Return a recording's length as its header states it, without decoding.

    Raises:
        AudioError: If the header is not plausible, contradicts the file's size or does not state a length.
        OSError: If storage fails while reading.
    """
    with open_sound(recording, open_file) as (sound, _, extent):
        if extent.frames is None:
            raise AudioError(recording, "length", "the header of this streamed file does not state one")
        return float(extent.frames / sound.samplerate)


def measure_seconds(recording: str, *, open_file: OpenFile = open_local) -> float:
    """Return a recording's length; where its header does not state one, all of it is decoded.

    Raises:
        AudioError: If the header is not plausible or contradicts the file's size, or the sound cannot be decoded.
        OSError: If storage fails while reading.
    """
    with open_sound(recording, open_file) as (sound, _, extent):
        frames = extent.frames
        if frames is None:
            blocks = iter(lambda: len(sound.read(_MEASURED_AT_ONCE, dtype="float32", always_2d=True)), 0)
            frames = sum(blocks)
        return float(frames / sound.samplerate)


def probe_format(recording: str, *, open_file: OpenFile = open_local) -> tuple[int, int]:
    """Return a recording's channels and rate [Hz] as its header states them. Raises as `probe_seconds`."""
    with open_sound(recording, open_file) as (sound, _, _):
        return int(sound.channels), int(sound.samplerate)


class SoundFile(soundfile.SoundFile):  # type: ignore[misc]  # soundfile is untyped
    """Reads without the seek that soundfile does after each read, which fails at the end of a streamed FLAC."""

    def seekable(self) -> bool:
        return False

    def can_seek(self) -> bool:
        """Say whether the codec can; GSM 6.10, for one, cannot."""
        return bool(super().seekable())


class _WatchedFile:
    """Reads ahead, and remembers that storage failed: libsndfile takes a failed read for the end of the file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._skipped = 0
        self._size = file.seek(0, io.SEEK_END)
        self._position = 0
        self._block = b""
        self._block_start = 0
        self.extra_zeros = 0
        """Bytes that the file seems to have behind its end."""
        self.patch: tuple[int, bytes] | None = None
        """A place in the file, and what seems to stand there."""
        self.error: OSError | None = None

    def skip(self, count: int) -> None:
        """Leave out the file's first `count` bytes from now on."""
        self._skipped += count
        self._size -= count
        self.reread()

    def reread(self) -> None:
        """Go to the start, and keep nothing of what has been read."""
        self._position = self._block_start = 0
        self._block = b""

    def read(self, count: int) -> bytes:
        place = self._position - self._block_start
        data = self._block[place : place + count] if place >= 0 else b""
        if len(data) < min(count, self._size - self._position):
            try:
                self._file.seek(self._skipped + self._position)
                self._block, self._block_start = self._file.read(max(count, _READ_AHEAD_BYTES)), self._position
                self._block = self._patched(self._block, self._position)
            except OSError as error:
                self.error = error
                return b""
            data = self._block[:count]
        if self.extra_zeros:
            data = data.ljust(min(count, self._size + self.extra_zeros - self._position), b"\0")
        self._position += len(data)
        return data

    def _patched(self, data: bytes, start: int) -> bytes:
        if self.patch is None:
            return data
        at, new = self.patch[0] - start, self.patch[1]
        return data[: max(0, at)] + new[max(0, -at) : max(0, len(data) - at)] + data[max(0, at + len(new)) :]

    def readinto(self, buffer: memoryview) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = max(0, offset + (0, self._position, self._size + self.extra_zeros)[whence])
        return self._position

    def tell(self) -> int:
        return self._position


@contextmanager
def open_sound(recording: str, open_file: OpenFile) -> Iterator[tuple[SoundFile, _WatchedFile, Extent]]:
    """Open a recording and give it with its bytes and what is known of its length.

    What is wrong with its headers, or found to be wrong inside the block, becomes AudioError.
    """
    try:
        file = open_file(recording)
    except UnreadableError as error:
        raise AudioError(recording, "open", error.reason) from error
    except OSError as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError):
            denied = isinstance(error, PermissionError)
            raise AbsentError(recording, "open", "permission denied" if denied else "no such file") from error
        if error.errno not in _OPEN_REASONS:
            raise
        raise AudioError(recording, "open", _OPEN_REASONS[error.errno]) from error
    with file:
        watched = _WatchedFile(file)
        try:
            start, has_zeros = find_start(watched)
            watched.seek(0)
            if has_zeros:  # libsndfile would not know what the file is
                watched.skip(start)
            sound, extent = _open_measured(watched, recording)
            with sound:
                yield sound, watched, extent
        except soundfile.LibsndfileError as error:
            if watched.error is None:
                reason = _TRUE_REASONS.get(error.error_string, error.error_string)
                raise AudioError(recording, "decode", reason) from error
        except DamagedError as error:
            if watched.error is None:
                raise AudioError(recording, "length", str(error)) from error
        except AudioError:
            if watched.error is None:
                raise
    if watched.error is not None:
        raise watched.error


def _open_measured(watched: _WatchedFile, recording: str) -> tuple[SoundFile, Extent]:
    try:
        sound = SoundFile(watched)
    except soundfile.LibsndfileError as error:
        watched.seek(0)
        if is_read(watched.read(64)) or watched.error is not None:
            raise
        raise _other_format(recording, "this format") from error
    try:
        _check_header(sound, recording)
        position = watched.tell()
        extent = measure(sound.format, sound.subtype, watched, sound.frames)
        watched.seek(position)
    except BaseException:
        sound.close()
        raise
    if extent.missing_bytes or extent.patch:
        sound.close()
        watched.extra_zeros, watched.patch = extent.missing_bytes, extent.patch
        watched.reread()
        sound = SoundFile(watched)
        watched.extra_zeros = 0
    if sound.subtype == "VORBIS" and _MISCOUNTED in sound.extra_info:
        doubt = "its first page has more samples than it counts, as after a cut; as many are missing at the end"
        extent = replace(extent, seekable=0, doubt=doubt)
    return sound, extent if sound.can_seek() else replace(extent, seekable=0)


def _other_format(recording: str, what: str) -> AudioError:
    name = PurePosixPath(recording.rpartition("!")[2].partition("?")[0])
    other = name.with_suffix(".wav" if name.suffix == ".flac" else ".flac")
    command = shlex.join(["ffmpeg", "-i", name.name, other.name])
    reason = f"{what} is not read; WAV, FLAC, Ogg Vorbis, Ogg Opus and MP3 are. To convert it: {command}"
    return AudioError(recording, "format", reason)


def _check_header(sound: SoundFile, recording: str) -> None:
    if sound.format not in _CONTAINERS:
        raise _other_format(recording, sound.format)
    if "MPEG" in sound.subtype and (sound.format, sound.subtype) != ("MP3", "MPEG_LAYER_III"):
        # libsndfile takes the length of what is in a WAV from its header, and stops there.
        layer = sound.subtype.removeprefix("MPEG_LAYER_")
        raise _other_format(recording, f"MPEG layer {layer}{' in a WAV' * (sound.format != 'MP3')}")
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
