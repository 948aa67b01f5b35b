"""Lengths that libsndfile takes on trust: what a damaged file's headers state against the rest of it.

The sound of FLAC and Ogg bears checksums, which libsndfile heeds, but not all of their headers do. WAV and MP3 have
none, so that damage shows only where one place contradicts another.
"""

import io
import re
import struct
import zlib
from collections.abc import Iterator

from encoders.sound.extent import UNKNOWN_FRAMES, DamagedError, Extent, Seekable
from encoders.sound.mp3 import check_mp3_end, measure_mp3

_STREAMED_WAV_BYTES = 0x7FFF_F000  # in a size written to a pipe all these bits are set, or the one above alone
_LINEAR_WAV = (1, 3, 0xFFFE)  # integers, floats, and either with an extended header
_READ_WAV = (*_LINEAR_WAV, 2, 6, 7, 0x11, 0x31, 0x38, 0x40)  # logarithms, ADPCM and GSM 6.10
_MAX_OGG_PAGE_BYTES = 65_307
_BIT_REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))
_STREAM_HEADS = (b"fLaC\0\0\0\x22", b"OggS\0\2", b"WAVEfmt ", b"Xing\0\0\0", b"Info\0\0\0")
_FLAC_SYNC = re.compile(rb"\xff[\xf8\xf9]")
_FLAC_TAIL_BYTES = 131_072  # holds the last frame, and tags of usual size after it
_FLAC_RATES_HZ = (0, 88_200, 176_400, 192_000, 8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000, 0, 0, 0)
_FLAC_BLOCKS = (0, 192, 576, 1152, 2304, 4608, 0, 0, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768)


def measure(container: str, codec: str, file: Seekable, frames: int) -> Extent:
    """Return how long a file is.

    Args:
        container: As libsndfile names it.
        codec: Likewise, what it calls the subtype.
        file: The open file.
        frames: What libsndfile makes of the headers.

    Raises:
        DamagedError: If the headers contradict each other or the file's size.
    """
    if container == "OGG":
        last, patch = _check_ogg_ends(file)
        # The count of the last page is that of the true end, so that libsndfile, which counts back, begins it wrongly.
        seekable = max(0, frames - last) if codec == "VORBIS" else None
        return Extent(frames, seekable, "its last page is not marked as the end" if patch else "", patch=patch)
    if container == "MP3":
        return measure_mp3(file, frames)
    if container != "FLAC":
        _check_wav_sizes(file)
    return Extent(frames if frames < UNKNOWN_FRAMES else None)


def is_read(head: bytes) -> bool:
    """Say whether a file is of a kind that is read, by its first 64 bytes; one that is shorter may be."""
    if len(head) < 64:
        return True
    if head[8:12] == b"WAVE":
        code = int.from_bytes(head[20:22], "big" if head[:4] == b"RIFX" else "little")
        return head[12:16] != b"fmt " or code in _READ_WAV
    if head[:4] == b"OggS":
        return b"\x01vorbis" in head or b"OpusHead" in head
    return head[:4] == b"fLaC" or head[:3] == b"ID3" or (head[0] == 0xFF and head[1] & 0xE6 == 0xE2)


def check_end(container: str, file: Seekable, frames: int | None, rate_hz: int) -> None:
    """Check that a file holds nothing but the samples just decoded: its first `frames`, None if it does not state them.

    Raises:
        DamagedError: If it holds more.
    """
    if container == "MP3":
        check_mp3_end(file)
    elif container == "OGG":
        _check_ogg_pages(file)
    elif container == "FLAC":
        _check_flac_end(file, frames, rate_hz)


def _check_wav_sizes(file: Seekable) -> None:
    """Compare the format chunk with itself, and the chunks' sizes with the file's."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    order = ">" if file.read(12)[:4] == b"RIFX" else "<"
    data_bytes_64 = None
    is_past_sound = False
    while len(head := file.read(8)) == 8:
        tag, count = struct.unpack(f"{order}4sI", head)
        body = file.tell()
        if tag == b"fmt ":
            _check_wav_format(*struct.unpack(f"{order}HHIIHH", file.read(16).ljust(16, b"\0")))
        elif tag == b"ds64":  # of RF64: sizes beyond 32 bits
            (data_bytes_64,) = struct.unpack(f"{order}8xQ", file.read(16).ljust(16, b"\0"))
        elif tag == b"data":
            if data_bytes_64 is not None and count == 0xFFFF_FFFF:
                count = data_bytes_64
            elif count & _STREAMED_WAV_BYTES == _STREAMED_WAV_BYTES or count == 0x8000_0000:
                return
            if count > size - body:
                raise DamagedError(f"cut off: {count} bytes of sound stated, {size - body} there")
            is_past_sound = True
        elif is_past_sound and (tag == b"RIFF" or count > size - body or not re.fullmatch(rb"[ -~]{4}", tag)):
            raise DamagedError(f"{size - body + 8} bytes at its end belong to no chunk: more sound than it states")
        file.seek(body + count + count % 2)


def _check_wav_format(code: int, channels: int, rate_hz: int, byte_rate: int, frame_bytes: int, bits: int) -> None:
    if code not in _LINEAR_WAV:
        return
    if frame_bytes != channels * -(-bits // 8) or byte_rate not in (0, rate_hz * frame_bytes):
        sizes = f"{frame_bytes} bytes at a time, {byte_rate} a second"
        raise DamagedError(f"{channels} channels of {bits} bits at {rate_hz} Hz cannot be {sizes}")


def _check_ogg_ends(file: Seekable) -> tuple[int, tuple[int, bytes] | None]:
    """Return how many samples end in the last page and, if it is not marked as the last, where the mark belongs.

    Checks the pages from which a length follows: all up to the first with sound, and the last. Of a damaged page
    between them libsndfile notices itself that its samples are missing. Pages: RFC 3533.
    """
    for page in _ogg_pages(file):
        if int.from_bytes(page[6:14], "little", signed=True) > 0:  # 0 in headers, -1 where no packet ends
            break
    size = file.seek(0, io.SEEK_END)
    tail_start = file.seek(max(0, size - 2 * _MAX_OGG_PAGE_BYTES))
    tail = file.read(size - tail_start)
    at = max(0, tail.rfind(b"OggS"))
    file.seek(tail_start + at)
    last = _read_ogg_page(file)
    if file.tell() != size:
        raise DamagedError(f"{size - file.tell()} bytes behind its last Ogg page")
    patch = None
    if not last[5] & 4:  # without it libsndfile rejects an Opus page that counts less than it holds, as the last may
        head = last[:5] + bytes([last[5] | 4]) + last[6:27]
        patch = tail_start + at, head[:22] + _ogg_checksum(head + last[27:]) + head[26:]
    end = int.from_bytes(last[6:14], "little")
    while (at := tail.rfind(b"OggS", 0, at)) >= 0:
        before = int.from_bytes(tail[at + 6 : at + 14], "little", signed=True)
        if before >= 0 and tail[at + 14 : at + 18] == last[14:18]:
            return end - before, patch
    return end, patch


def _check_ogg_pages(file: Seekable) -> None:
    heads = [page for page in _ogg_pages(file) if page[5] & 2 and (b"\x01vorbis" in page or b"OpusHead" in page)]
    if len(heads) > 1:
        raise DamagedError(f"{len(heads)} streams in one file, of which only the first would be heard")


def _ogg_pages(file: Seekable) -> Iterator[bytes]:
    """Yield a file's pages, of each stream without a gap."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    next_numbers: dict[bytes, int] = {}
    while file.tell() < size:
        page = _read_ogg_page(file)
        stream, number = page[14:18], int.from_bytes(page[18:22], "little")
        if number != next_numbers.get(stream, number):
            raise DamagedError(f"Ogg page {next_numbers[stream]} is missing")
        next_numbers[stream] = number + 1
        yield page


def _read_ogg_page(file: Seekable) -> bytes:
    start = file.tell()
    head = file.read(27)
    sizes = file.read(head[26]) if len(head) == 27 else b""
    page = head + sizes + file.read(sum(sizes))
    if page[:4] != b"OggS" or _ogg_checksum(page) != page[22:26]:
        raise DamagedError(f"the Ogg page at byte {start} is cut off or damaged")
    return page


def _ogg_checksum(page: bytes) -> bytes:
    # The polynomial is zlib's, but start and end are 0 instead of inverted, and bits come highest first.
    blank = page[:22] + bytes(4) + page[26:]
    crc = zlib.crc32(blank.translate(_BIT_REVERSED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int(f"{crc:032b}"[::-1], 2).to_bytes(4, "little")


def _check_flac_end(file: Seekable, frames: int | None, rate_hz: int) -> None:
    """Compare with the last frame's header what STREAMINFO says without a checksum (RFC 9639, sections 8.2 and 9.1)."""
    start = max(4, file.tell() - _FLAC_TAIL_BYTES)
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if head[:4] != b"fLaC":  # a tag comes first
        return
    file.seek(start)
    tail = file.read(size - start)
    if any(mark in tail for mark in _STREAM_HEADS):
        raise DamagedError("several files in one, of which only the first would be heard")
    if frames is None:
        return
    # Bytes of sound can look like a header, checksum and all, but hardly like the one before or after `frames`.
    spans = [
        _flac_frame_span(tail[match.start() : match.start() + 16], head, rate_hz) for match in _FLAC_SYNC.finditer(tail)
    ]
    if frames not in {end for _, end in spans} or frames in {start for start, _ in spans}:
        raise DamagedError(f"its last frame is not the end of {frames} samples at {rate_hz} Hz, as its header states")


def _flac_frame_span(data: bytes, stream_head: bytes, rate_hz: int) -> tuple[int, int]:
    """Return the first sample of the frame whose header this is and the one after its last; (-1, -1) if it is none."""
    block_code, rate_code = divmod(data[2], 16) if len(data) > 5 else (0, 15)
    if block_code == 0 or rate_code == 15 or _FLAC_RATES_HZ[rate_code] not in (0, rate_hz):
        return -1, -1
    ones = 8 - (data[4] ^ 0xFF).bit_length()  # the number is written as UTF-8 writes characters
    block_at = 4 + max(1, ones)
    block_bytes = {6: 1, 7: 2}.get(block_code, 0)
    checked = data[: block_at + block_bytes + {12: 1, 13: 2, 14: 2}.get(rate_code, 0) + 1]
    if _crc8(checked) != 0:
        return -1, -1
    number = data[4] & (0x7F >> ones)
    for byte in data[5:block_at]:
        number = number << 6 | byte & 0x3F
    is_variable = data[1] & 1
    start = number if is_variable else number * int.from_bytes(stream_head[10:12])
    block = int.from_bytes(data[block_at : block_at + block_bytes]) + 1 if block_bytes else _FLAC_BLOCKS[block_code]
    return start, start + block


def _crc8(data: bytes) -> int:
    """Return the checksum of polynomial 0x07, 0 over data that end with their own."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc << 1 ^ (0x107 if crc & 0x80 else 0)
    return crc
