"""A look at recordings: whether they are there, which sound each is, and how long, from headers alone."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from encoders.audio import AudioError, clip_seconds
from encoders.sound.recordings import UnreadableError
from encoders.sound.sound_file import probe_seconds
from pipelines import storage
from pipelines.errors import UserError
from pipelines.manifest.sources import source_nbytes, source_of, source_of_plain
from pipelines.manifest.tables import Clip

PROBE_THREADS = 16
HEADERS_READ_HERE = 50_000
"""Headers read by threads of this process before a local Ray cluster, which takes 10 s to start, is worth it."""
Problem = Literal["not there", "empty", "header cannot be read; kept without a length"]
UNREADABLE: Problem = "header cannot be read; kept without a length"


@dataclass(frozen=True)
class Look:
    """What was seen of a clip: its length, and of each segment's recording what tells it from another; or a problem."""

    seconds: float | None
    sources: tuple[str, ...] = ()
    unheard_seconds: float = 0.0
    """Sound after what is heard, the first `max_clip_seconds`."""
    problem: Problem | None = None
    detail: str = ""

    @property
    def is_missing(self) -> bool:
        """Say whether there is nothing to hear, as of a download that is not complete."""
        return self.problem in ("not there", "empty")


@dataclass(frozen=True)
class _Seen:
    """What was seen of one recording; `seconds` of the whole, where it was asked for and its header says so.

    One that cannot be read has no source: mended, it is not another sound.
    """

    source: str = ""
    seconds: float | None = None
    problem: Problem | None = None
    detail: str = ""


def look_at(clips: Sequence[Clip], max_clip_seconds: float) -> list[Look]:
    """Open every recording once; lengths that are stated are taken, others come from headers."""
    is_asked: dict[tuple[str, str], bool] = {}
    for clip in clips:
        for segment in clip.segments:
            place = (clip.root, segment.recording)
            is_asked[place] = is_asked.get(place, False) or segment.duration_seconds is None
    asked = list(is_asked.items())
    if not any(is_asked.values()) and all(storage.is_local(root) for root in {clip.root for clip in clips}):
        seen = _see_here(asked)  # threads that only open files here spend their time on waiting for each other
        return [_look(clip, seen, max_clip_seconds) for clip in clips]
    shares = [asked[first::PROBE_THREADS] for first in range(PROBE_THREADS)]  # a task for each would cost more than it
    with ThreadPoolExecutor(PROBE_THREADS) as pool:
        seen = dict(chain.from_iterable(pool.map(_see_all, shares)))
    return [_look(clip, seen, max_clip_seconds) for clip in clips]


def _see_here(asked: Sequence[tuple[tuple[str, str], bool]]) -> dict[tuple[str, str], _Seen]:
    """See local recordings whose lengths are stated, most of which are plain files."""
    paths = {root: storage.full_path(root) for root in {root for (root, _), _ in asked}}
    seen = {}
    for (root, recording), _ in asked:
        # A name with dots or a slash before it may lead elsewhere, which `join` looks into.
        source = None if ".." in recording or recording[:1] == "/" else source_of_plain(f"{paths[root]}/{recording}")
        seen[root, recording] = _Seen(source) if source else _see(storage.join(root, recording), is_asked=False)
    return seen


def _see_all(asked: Sequence[tuple[tuple[str, str], bool]]) -> list[tuple[tuple[str, str], _Seen]]:
    return [(place, _see(storage.join(*place), is_asked)) for place, is_asked in asked]


def _see(uri: str, is_asked: bool) -> _Seen:
    try:
        with storage.open_file(uri) as file:
            source = source_of(file)
            if not source_nbytes(source):
                return _Seen(problem="empty", detail=f"{uri}: has no bytes")
            file.seek(0)
            return _Seen(source, probe_seconds(uri, open_file=lambda _: file) if is_asked else None)
    except (FileNotFoundError, NotADirectoryError):
        return _Seen(problem="not there", detail=f"{uri}: no such file")
    except UnreadableError as error:
        return _Seen(problem="not there" if error.is_absent else UNREADABLE, detail=" ".join(str(error).split()))
    except (AudioError, OSError, UserError) as error:
        return _Seen(problem=UNREADABLE, detail=" ".join(str(error).split()))


def _look(clip: Clip, seen_at: Mapping[tuple[str, str], _Seen], max_clip_seconds: float) -> Look:
    segments = clip.segments
    seen = [seen_at[clip.root, segment.recording] for segment in segments]
    sources = tuple([recording.source for recording in seen])
    if not all(sources):
        sources = ()
    lengths: list[float] = []
    for segment, recording in zip(segments, seen, strict=True):
        seconds = segment.duration_seconds
        if recording.problem:
            all_stated = [other.duration_seconds for other in segments if other.duration_seconds is not None]
            known = clip_seconds(all_stated, max_clip_seconds) if len(all_stated) == len(segments) else None
            return Look(known, sources, problem=recording.problem, detail=recording.detail)
        if seconds is None:
            seconds = (recording.seconds or 0.0) - segment.start_seconds
            if seconds <= 0:
                uri = storage.join(clip.root, segment.recording)
                detail = f"{uri}: length: start_seconds {segment.start_seconds} lies after its end"
                return Look(None, sources, problem=UNREADABLE, detail=detail)
        lengths.append(seconds)
    return Look(clip_seconds(lengths, max_clip_seconds), sources, max(0.0, sum(lengths) - max_clip_seconds))
