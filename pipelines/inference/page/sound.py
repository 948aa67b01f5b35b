"""What is heard in clips, decoded once more from the manifest's recordings and written as FLAC beside a page."""

import hashlib
import io
from collections.abc import Collection
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import soundfile as sf

from encoders.audio import SAMPLE_RATE_HZ
from encoders.errors import EncoderError
from encoders.sound.clips import load_clip
from pipelines import storage
from pipelines.cache.recipe import Recipe
from pipelines.errors import UserError
from pipelines.interface.progress import Phase
from pipelines.manifest.tables import CLIP_SCHEMA, CLIPS, Clip, clip_from_row, read_batches


@dataclass(frozen=True)
class Sound:
    """A clip's file in the folder of sounds, or, where the name is empty, why there is none."""

    name: str
    problem: str = ""


def write_sounds(
    folder: str, manifest: str, clip_ids: Collection[str], *, recipe: Recipe, phase: Phase
) -> dict[str, Sound]:
    """Write each clip as 16 kHz FLAC of 16 bits and return its file; other FLACs of the folder are removed.

    A clip whose recording cannot be read now has its reason instead of a file.
    """
    clips = read_some_clips(manifest, clip_ids)
    sounds = {}
    for clip_id in clip_ids:
        sounds[clip_id] = _write(folder, clip_id, clips.get(clip_id), recipe)
        phase.advance()
    shown = {sound.name for sound in sounds.values()}
    for name in storage.list_names(folder, ".flac"):
        if name not in shown:
            storage.delete_file(storage.join(folder, name))
    return sounds


def read_some_clips(manifest: str, clip_ids: Collection[str]) -> dict[str, Clip]:
    """Return clip_id -> clip of those that a manifest has."""
    wanted = pa.array(list(clip_ids), pa.string())
    return {
        row["clip_id"]: clip_from_row(row)
        for batch in read_batches(manifest, CLIPS, CLIP_SCHEMA.names)
        for row in batch.filter(pc.is_in(batch["clip_id"], value_set=wanted)).to_pylist()
    }


def _write(folder: str, clip_id: str, clip: Clip | None, recipe: Recipe) -> Sound:
    if clip is None:
        return Sound("", "the manifest has no such clip now")
    name = f"{hashlib.sha256(clip_id.encode()).hexdigest()[:16]}.flac"  # an id from elsewhere may hold a path
    try:
        wave = load_clip(
            clip.located(),
            channel=recipe.channel,
            max_clip_seconds=recipe.max_clip_seconds,
            open_file=storage.open_file,
        )
    except (EncoderError, UserError, OSError) as error:
        return Sound("", " ".join(str(error).split()))
    buffer = io.BytesIO()
    sf.write(buffer, wave.numpy(), SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    storage.write_bytes(storage.join(folder, name), buffer.getvalue())
    return Sound(name)
