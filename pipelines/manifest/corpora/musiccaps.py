"""MusicCaps (2023): `musiccaps-public.csv` of captions of ten seconds of videos, which each user downloads.

Rows of AudioSet's evaluation part are the split `test`, the others `train`. Captions whose recording is not there are
skipped: the corpus publishes none, and some videos are gone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from omegaconf import MISSING

from encoders.audio import Segment
from pipelines import storage
from pipelines.errors import UserError
from pipelines.interface.progress import Progress
from pipelines.manifest.corpora.recordings import with_recordings, with_times
from pipelines.manifest.corpora.text_files import read_rows, require_layout
from pipelines.manifest.corpus import CorpusExample, PrepareConfig
from pipelines.manifest.prepare import write_manifest
from pipelines.manifest.reports import PrepareReport

METADATA = "musiccaps-public.csv"
PACKAGINGS = {
    "audio/{ytid}.wav": "own downloads, named by their video",
    "{ytid}.wav": "the same beside the captions",
    "audio/{ytid}_{start_ms}_{end_ms}.wav": "downloads named as AudioSet's are, by milliseconds",
    "audio/[{ytid}]-[{start_s}-{end_s}].wav": "downloads named by their seconds",
}


@dataclass(frozen=True)
class MusicCapsConfig(PrepareConfig):
    root: str = MISSING
    """[URI] The folder that holds musiccaps-public.csv and the recordings."""
    recording: str = ""
    """[template] A recording's name below the root, made of the columns ytid, start_s and end_s, and end_time, start_ms
    and end_ms; empty: the first packaging of docs/packagings.md that is there."""
    whole_videos: bool = False
    """[true/false] Recordings are whole videos, of which start_s to end_s is heard; false: they are cut already."""
    corpus: str = "musiccaps"
    """[name] Corpus name in the manifest; part of every clip's identity."""


def prepare_musiccaps(config: MusicCapsConfig, progress: Progress | None = None) -> PrepareReport:
    """Write the manifest of the captions whose recordings are there."""
    root = require_layout(config.root, [METADATA], expected=f"the folder that holds {METADATA} and the recordings")
    return write_manifest(read_musiccaps(config), corpus=config.corpus, root=root, config=config, progress=progress)


def read_musiccaps(config: MusicCapsConfig) -> Iterator[CorpusExample]:
    """Yield the captions in the file's order.

    Raises:
        UserError: Naming the line that is malformed, or the column that is missing.
    """
    columns = ["ytid", "start_s", "end_s", "caption", "is_audioset_eval"]
    rows = read_rows(storage.join(config.root, METADATA), columns)
    timed = ((place, with_times(row, "start_s", "end_s")) for place, row in rows)
    for place, row, recording in with_recordings(timed, config.recording, PACKAGINGS, config.root):
        segment = _cut(recording, row, place) if config.whole_videos else Segment(recording)
        split = "test" if row["is_audioset_eval"].strip().lower() == "true" else "train"
        yield CorpusExample((segment,), split, "music_caption", row["caption"].strip())


def _cut(recording: str, row: Mapping[str, str], place: str) -> Segment:
    try:
        start, end = float(row["start_s"]), float(row["end_s"])
        return Segment(recording, start, end - start)
    except ValueError:
        raise UserError(f"{place}: start_s {row['start_s']!r} to end_s {row['end_s']!r} is no span") from None
