"""Channels and rates of a few recordings: a look at all would read their headers where lengths are stated already."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from encoders.audio import AudioError
from encoders.sound.sound_file import probe_format
from pipelines import storage
from pipelines.errors import UserError
from pipelines.manifest.tables import Clip

SAMPLED_PER_BATCH = 16
"""Clips of a batch of 2,048 whose headers are looked at, as many as can be at once."""


def sampled_formats(clips: Sequence[Clip]) -> list[str]:
    """Return channels and rate of the first recording of clips spread over these, in words.

    One that cannot be read from here is left out: what is wrong with it is told elsewhere.
    """
    chosen = clips[:: -(-len(clips) // SAMPLED_PER_BATCH) or 1]
    uris = [clip.located()[0].recording for clip in chosen]
    with ThreadPoolExecutor(SAMPLED_PER_BATCH) as pool:
        return [words for words in pool.map(_format, uris) if words]


def _format(uri: str) -> str:
    try:
        channels, rate_hz = probe_format(uri, open_file=storage.open_file)
    except (AudioError, OSError, UserError):
        return ""
    return f"{channels} channel{'s' * (channels > 1)} at {rate_hz:,} Hz"
