"""MP3: where its frames lie, which libsndfile guesses or takes on trust (ISO 11172-3 and 13818-3).

A first frame without sound, the Xing header, may state how many frames and bytes the file has. Zeros and tags may stand
on either side of the frames.
"""

import io
import re
from functools import lru_cache

from encoders.sound.extent import UNKNOWN_FRAMES, DamagedError, Extent, Seekable

_RATES_HZ = (44_100, 48_000, 32_000)
_RATE_DIVISORS = {3: 1, 2: 2, 0: 4}  # MPEG 1, 2 and 2.5
_MPEG_1_KBITS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MPEG_2_KBITS = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_SYNC = re.compile(rb"\xff[\xe2-\xff]")
_XING = re.compile(rb"(?:Xing|Info)\0\0\0([\1\3\5\7\x09\x0b\x0d\x0f])(.{4})(.{4})", re.DOTALL)
_TRAILING_TAGS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"ID3")
_MAX_ZEROS = 131_072

_Format = tuple[int, int]
"""Samples per second and channels."""


def find_start(file: Seekable) -> tuple[int, bool]:
    """Return the byte at which the first frame begins, after ID3v2 tags and zeros, and whether there were zeros."""
    start, has_zeros = 0, False
    while True:
        file.seek(start)
        head = file.read(10)
        if head[:3] == b"ID3" and len(head) == 10:
            seven_bits = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(reversed(head[6:])))
            start += 10 + seven_bits + (10 if head[5] & 0x10 else 0)
        elif head[:1] == b"\0" and (rest := (head + file.read(_MAX_ZEROS)).lstrip(b"\0")):
            start, has_zeros = file.tell() - len(rest), True
        else:
            return start, has_zeros and _frame(head[:4])[0] > 0


def measure_mp3(file: Seekable, frames: int) -> Extent:
    """Return how long an MP3 is of which libsndfile says that it has `frames` samples per channel.

    Without a Xing header that is a guess from the first frame's bit rate, and libsndfile reads no further.

    Raises:
        DamagedError: If the file holds more or less than its Xing header states, or something other than frames.
    """
    start, _ = find_start(file)
    file.seek(start)
    if stated := _XING.search(file.read(64)):
        if frames >= UNKNOWN_FRAMES:
            raise DamagedError("its header cuts off more samples at its ends than it holds")
        _check_xing(file, start, int.from_bytes(stated[2]), int.from_bytes(stated[3]) if stated[1][0] & 2 else 0)
        return Extent(frames)
    offsets, samples = find_frames(file)
    there = len(offsets) * samples
    if there - frames <= samples + there // 1000:  # rounding aside
        return Extent(min(there, frames))
    size = file.seek(0, io.SEEK_END)
    return Extent(there, missing_bytes=size * there // frames - size + 10_000)


def check_mp3_end(file: Seekable) -> None:
    """Check that no frames follow those just decoded.

    Raises:
        DamagedError: If some do, or if the file holds something other than frames.
    """
    end = file.tell()
    offsets, _ = find_frames(file)
    # The last one or two may hold nothing but what encoders append.
    if len([offset for offset in offsets if offset >= end]) > 2:
        raise DamagedError(f"holds more than the header states, which is damaged: {len(offsets)} frames in all")


def _check_xing(file: Seekable, start: int, frames: int, nbytes: int) -> None:
    """Compare what a Xing header states with the file; its frames are only counted where its bytes are wrong."""
    size = file.seek(0, io.SEEK_END)
    if nbytes and start + nbytes <= size:
        file.seek(start + nbytes)
        if not _holds_frames(file.read(size)):
            return
    there = len(find_frames(file)[0]) - 1  # the Xing header is a frame by itself
    if there > frames:
        raise DamagedError(
            f"several files in one: {there} frames, of which the first header states and libsndfile hears {frames}"
        )
    if there < frames - 1:  # some writers count the header
        raise DamagedError(f"cut off: {frames} frames stated, {there} there")


def find_frames(file: Seekable) -> tuple[list[int], int]:
    """Return the bytes at which an MP3's frames begin, the Xing header's among them, and the samples of each.

    Raises:
        DamagedError: If something other than frames, and tags behind them, is there, or if the frames' format changes.
    """
    start, _ = find_start(file)
    size = file.seek(0, io.SEEK_END)
    file.seek(start)
    data = file.read(size)
    _, samples, first = _frame(data[:4])
    offsets: list[int] = []
    at = 0
    while True:
        nbytes, _, form = _frame(data[at : at + 4])
        if not 0 < nbytes <= len(data) - at:
            break
        if form != first:
            turn = " to ".join(
                f"{rate_hz} Hz {('', 'mono', 'stereo')[channels]}" for rate_hz, channels in (first, form)
            )
            raise DamagedError(f"turns from {turn} {_after(offsets, samples, first)}")
        offsets.append(start + at)
        at += nbytes
    rest = data[at:].lstrip(b"\0")
    if not offsets or (rest and not _is_tag(rest)):
        raise DamagedError(f"no whole MPEG layer III frame {_after(offsets, samples, first)}")
    if _holds_frames(rest):
        raise DamagedError(f"several files in one: a tag and more sound follow {_after(offsets, samples, first)}")
    return offsets, samples


def _after(offsets: list[int], samples: int, form: _Format) -> str:
    return f"after {len(offsets) * samples / form[0]:.2f} s"


def _is_tag(data: bytes) -> bool:
    if data.startswith(_TRAILING_TAGS):
        return True
    foot = data.find(b"APETAGEX")  # in the tag's first version it stands at the end alone
    return foot >= 0 and 0 <= int.from_bytes(data[foot + 12 : foot + 16], "little") - 32 - foot < 4  # zeros may be gone


def _holds_frames(data: bytes) -> bool:
    """Say whether three frames follow each other somewhere in `data`; tags and pictures do not look so."""
    for match in _SYNC.finditer(data):
        at, form = match.start(), _frame(data[match.start() : match.start() + 4])[2]
        for _ in range(3):
            nbytes, _, other = _frame(data[at : at + 4])
            if not nbytes or other != form:
                break
            at += nbytes
        else:
            return True
    return False


@lru_cache(None)
def _frame(head: bytes) -> tuple[int, int, _Format]:
    """Return bytes, samples per channel and format of the layer III frame that begins so; zeros if none does."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return 0, 0, (1, 0)
    version, bit_rate, rate = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or bit_rate in (0, 15) or rate == 3:
        return 0, 0, (1, 0)
    samples, kbits = (1152, _MPEG_1_KBITS) if version == 3 else (576, _MPEG_2_KBITS)
    rate_hz = _RATES_HZ[rate] // _RATE_DIVISORS[version]
    nbytes = samples // 8 * kbits[bit_rate - 1] * 1000 // rate_hz + (head[2] >> 1 & 1)
    return nbytes, samples, (rate_hz, 1 if head[3] >> 6 == 3 else 2)
