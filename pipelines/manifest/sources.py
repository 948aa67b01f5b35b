"""Which sound a recording is, known from a few of its bytes, so that another under the same name is noticed."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

from encoders.sound.recordings import OpenFile, UnreadableError
from pipelines import storage
from pipelines.errors import UserError
from pipelines.manifest.tables import CLIP_SCHEMA, CLIPS, Clip, clip_from_row, count_clips, read_rows

BLOCK_NBYTES = 16_384
SAMPLED_CLIPS = 400
"""First, middle and last clips, so many each, whose recordings an extraction compares before it begins: that takes a
second on a local disk and some on an object store, however many clips there are."""
THREADS = 16


def source_of(file: BinaryIO) -> str:
    """Return what tells a recording from another: its bytes' number, and a digest of the first, middle and last 16 KiB.

    Two recordings that share it and their name would have to agree in all these bytes. A whole digest would read a
    corpus of terabytes once more.
    """
    nbytes = file.seek(0, io.SEEK_END)
    blocks = []
    for start in storage.sample_starts(nbytes, BLOCK_NBYTES):
        file.seek(start)
        blocks.append(file.read(BLOCK_NBYTES))
    return _source(nbytes, blocks)


def source_of_plain(path: str) -> str | None:
    """Return `source_of` a plain file that holds something, by its path from this machine's root; else None."""
    sampled = storage.read_samples(path, BLOCK_NBYTES)
    return _source(*sampled) if sampled and sampled[0] else None


def _source(nbytes: int, blocks: Sequence[bytes]) -> str:
    return f"{nbytes}-{hashlib.blake2b(b''.join(blocks), digest_size=8).hexdigest()}"


def source_nbytes(source: str) -> int:
    """Return how many bytes the recording had whose source this is."""
    return int(source.partition("-")[0])


def open_unchanged(clip: Clip) -> OpenFile:
    """Return what opens a clip's recordings, and refuses one that has not as many bytes as when it was prepared.

    The number of bytes costs nothing where a file is read anyway; `manifest check` compares more.
    """
    expected = dict(zip((segment.recording for segment in clip.located()), clip.sources, strict=False))

    def open_file(uri: str) -> BinaryIO:
        file = storage.open_file(uri)
        if uri in expected:
            there, before = file.seek(0, io.SEEK_END), source_nbytes(expected[uri])
            file.seek(0)
            if there != before:
                file.close()
                raise UnreadableError(
                    uri, f"has {there} bytes, and had {before} when it was prepared; prepare the manifest anew"
                )
        return file

    return open_file


def has_changed(uri: str, source: str) -> bool:
    """Say whether a recording that is there is another than when it was prepared.

    Raises:
        OSError: If it is not there or cannot be read.
        UnreadableError: If it is not to be had from its archive.
    """
    with storage.open_file(uri) as file:
        return source_of(file) != source


def require_unchanged(manifest: str) -> None:
    """Compare recordings of some of the first, middle and last clips; those that are not seen from here do not count.

    Raises:
        UserError: If one is another than when it was prepared.
    """
    places = list(_sampled(manifest))
    with ThreadPoolExecutor(THREADS) as pool:
        changed = [
            uri for (uri, _), is_changed in zip(places, pool.map(_is_changed, places), strict=True) if is_changed
        ]
    if changed:
        raise UserError(
            f"{manifest}: {len(changed)} of {len(places)} recordings that were compared are others than when they were "
            f"prepared, first {changed[0]}; prepare the manifest anew, then extract with replace_changed=true"
        )


def _is_changed(place: tuple[str, str]) -> bool:
    try:
        return has_changed(*place)
    except (OSError, UserError, UnreadableError):
        return False


def _sampled(manifest: str) -> Iterator[tuple[str, str]]:
    """Yield (URI, source) of recordings."""
    found, last = dict[str, str](), count_clips(manifest) - SAMPLED_CLIPS
    rows = {row + start for start in (0, last // 2, last) for row in range(SAMPLED_CLIPS)}
    for row in read_rows(manifest, CLIPS, CLIP_SCHEMA.names, [row for row in rows if 0 <= row < last + SAMPLED_CLIPS]):
        clip = clip_from_row(row)
        found.update(zip((segment.recording for segment in clip.located()), clip.sources, strict=False))
    yield from found.items()
