"""Lengths of many recordings, read from their headers."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from encoders.audio import AudioError, Segment, clip_seconds
from encoders.sound.sound_file import probe_seconds
from pipelines import storage
from pipelines.manifest.tables import Clip

PROBE_THREADS = 16
HEADERS_READ_HERE = 50_000
"""Headers read by threads of this process before a local Ray cluster, which takes 10 s to start, is worth it."""


def read_lengths(clips: Sequence[Clip]) -> list[float | str]:
    """Return clips' lengths in seconds, from their files' headers where no duration is stated, or why it cannot be."""
    if all(segment.duration_seconds is not None for clip in clips for segment in clip.segments):
        return [_clip_length(clip) for clip in clips]
    with ThreadPoolExecutor(PROBE_THREADS) as pool:
        return list(pool.map(_clip_length, clips))


def _clip_length(clip: Clip) -> float | str:
    try:
        return clip_seconds([_segment_seconds(clip.root, segment) for segment in clip.segments])
    except (AudioError, OSError) as error:
        return " ".join(str(error).split())


def _segment_seconds(root: str, segment: Segment) -> float:
    if segment.duration_seconds is not None:
        return segment.duration_seconds
    uri = storage.join(root, segment.recording)
    seconds = probe_seconds(uri, open_file=storage.open_file) - segment.start_seconds
    if seconds <= 0:
        raise AudioError(uri, "length", f"start_seconds {segment.start_seconds} lies after its end")
    return seconds
