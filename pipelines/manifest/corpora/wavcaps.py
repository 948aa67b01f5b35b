"""WavCaps (release of 2023): `json_files/<source>/….json` and the sounds of its Zip_files, `<id>.flac`.

The metadata hold one caption and the length of every sound. Lengths are only compared with `max_seconds`: headers are
read, since stated ones are rounded, and annotations about the same files then share their clips. All of it is `train`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from encoders.audio import Segment
from pipelines import storage
from pipelines.errors import UserError
from pipelines.interface.config import require_range
from pipelines.interface.progress import Progress
from pipelines.manifest.corpora.recordings import recording_folders, require_parts, with_recordings
from pipelines.manifest.corpora.text_files import read_json_items
from pipelines.manifest.corpus import CorpusExample, PrepareConfig, Skipped
from pipelines.manifest.prepare import write_manifest
from pipelines.manifest.reports import PrepareReport

SOURCES = {
    "FreeSound": "fsd_final.json",
    "BBC_Sound_Effects": "bbc_final.json",
    "SoundBible": "sb_final.json",
    "AudioSet_SL": "as_final.json",
}
PACKAGINGS = {
    "{source}_flac/{id}.flac": "its zips, unpacked without their folders",
    "mnt/fast/nobackup/scratch4weeks/xm00178/WavCaps/data/waveforms/{source}_flac/{id}.flac": "its zips as they unpack",
    "Audio/{source}/{id}.flac": "aac-datasets",
}


@dataclass(frozen=True)
class WavCapsConfig(PrepareConfig):
    root: str = MISSING
    """[URI] The folder that holds json_files/ and the recordings."""
    recording: str = ""
    """[template] A recording's name below the root, made of source and id; empty: the first packaging of
    docs/packagings.md that is there."""
    sources: list[str] = field(default_factory=lambda: list(SOURCES))
    """[names] Sources to read: FreeSound, BBC_Sound_Effects, SoundBible, AudioSet_SL."""
    max_seconds: float = 180.0
    """[seconds] Longer sounds are left out, as SALMONN's authors did."""
    blacklist: str = ""
    """[URI] One of the release's json_files/blacklist/*.json, of sounds that are in other corpora's test sets and are
    left out; empty: none."""
    corpus: str = "wavcaps"
    """[name] Corpus name in the manifest; part of every clip's identity."""

    def __post_init__(self) -> None:
        """Check sources and range."""
        super().__post_init__()
        require_range(self, ("max_seconds",), low=1)
        for source in self.sources:
            if source not in SOURCES:
                raise UserError(f"sources: {source!r} is not in WavCaps; choose from {', '.join(SOURCES)}")


def prepare_wavcaps(config: WavCapsConfig, progress: Progress | None = None) -> PrepareReport:
    """Write the manifest of the sources asked for."""
    parts = {
        source: [[_metadata(source)], recording_folders(config.recording, PACKAGINGS, source=source)]
        for source in SOURCES
    }
    root = require_parts(
        config.root,
        "sources",
        config.sources,
        parts,
        expected="json_files/ and the unpacked recordings of all sources=[…]",
    )
    return write_manifest(read_wavcaps(config), corpus=config.corpus, root=root, config=config, progress=progress)


def read_wavcaps(config: WavCapsConfig) -> Iterator[CorpusExample | Skipped]:
    """Yield the captions source by source in the metadata's order, which is read piece by piece.

    Raises:
        UserError: Naming the file and the entry that lacks an id, caption or length.
    """
    for source in config.sources:
        left_out = _read_blacklist(config.blacklist, source) if config.blacklist else set()
        for _, sound, recording in with_recordings(_sounds(config, source), config.recording, PACKAGINGS, config.root):
            caption, seconds = sound["caption"], sound["duration"]
            if seconds > config.max_seconds:
                yield Skipped(recording, f"longer than {config.max_seconds:g} s", f"{seconds} s")
            elif sound["id"] in left_out:
                yield Skipped(recording, "on the blacklist")
            elif not caption.strip():
                yield Skipped(recording, "no caption")
            else:
                yield CorpusExample((Segment(recording),), "train", "audiocaption", caption.strip())


def _sounds(config: WavCapsConfig, source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for place, entry in read_json_items(storage.join(config.root, _metadata(source)), "data"):
        name, caption, seconds = entry.get("id"), entry.get("caption"), entry.get("duration")
        if not (isinstance(name, str | int) and isinstance(caption, str) and isinstance(seconds, int | float)):
            raise UserError(f"{place}: needs an id, a caption and a duration; found {', '.join(map(repr, entry))}")
        stem = str(name).removesuffix(".wav")
        yield place, {"source": source, "id": stem, "caption": caption, "duration": seconds}


def _metadata(source: str) -> str:
    return f"json_files/{source}/{SOURCES[source]}"


def _read_blacklist(uri: str, source: str) -> set[str]:
    """Return a source's ids on the list; the list calls AudioSet_SL AudioSet, and knows FreeSound besides."""
    try:
        content = json.loads(storage.read_bytes(uri))
        names = content.get("AudioSet" if source == "AudioSet_SL" else source, [])
        return {str(name).removesuffix(".wav") for name in names}
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"blacklist={uri}: not lists of ids under the names of sources ({error})") from None
