"""A sample of a cache's clips encoded anew from their recordings, beside what is stored of them."""

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from encoders.audio import SAMPLE_RATE_HZ, AudioError
from encoders.clip_encoder import ClipEncoder
from encoders.codecs import dequantise, quantise
from encoders.errors import EncoderError
from encoders.features import heard_frames
from encoders.sound.clips import load_clip
from pipelines import storage
from pipelines.cache.encoder_recipe import load_encoder_of, recorded_beats
from pipelines.cache.index import committed_units, read_index, read_members
from pipelines.cache.plan import ExtractUnit, read_units
from pipelines.cache.recipe import Recipe, read_recipe
from pipelines.cache.tools.config import CacheVerifyConfig
from pipelines.cache.tools.nearness import Nearness, stored_frames
from pipelines.errors import JobIncompleteError, UserError
from pipelines.interface.devices import local_device
from pipelines.interface.words import counted
from pipelines.manifest.tables import Clip, corpus_roots

CHUNK_CLIPS = 32
"""Decoded and encoded together: 61 MB of waves."""


def encode_anew(config: CacheVerifyConfig) -> None:
    """Encode the sampled clips with the recipe's encoders; print how near the stored ones are, and which are not.

    What is compared is what would be stored now, so the codec's own loss is in neither.

    Raises:
        UserError: If an encoder cannot be loaded or is not the recipe's, or the sample has no clip.
        JobIncompleteError: If a clip is further away than `tolerance_db`, or cannot be encoded.
    """
    recipe, encoders = read_recipe(config.cache)
    whisper = config.whisper or encoders.get("speech", "")
    encoder = load_encoder_of(
        recipe,
        whisper=whisper,
        beats=config.beats or recorded_beats(encoders, of=config.cache),
        device=local_device(config.device),
        here=config.cache,
        there="the encoder of this command",
    )
    nearness, clips, faults = Nearness(), 0, 0
    roots = corpus_roots(config.manifest) if config.manifest else {}
    committed = committed_units(config.cache)
    with torch.inference_mode():
        for unit in read_units(config.cache, roots=roots):
            if unit.unit in committed:
                for fault in _faults(config, recipe, encoder, unit, nearness):
                    clips += 1
                    if fault:
                        print(fault)
                        faults += 1
    if not clips:
        raise UserError(f"{config.cache}: sample={config.sample:g}: has no clip of this cache; take a larger one")
    for line in nearness.lines():
        print(line)
    if faults:
        raise JobIncompleteError(
            f"{config.cache}: {faults} of {counted(clips, 'clip')} are not what their recordings give today"
        )


def _faults(
    config: CacheVerifyConfig, recipe: Recipe, encoder: ClipEncoder, unit: ExtractUnit, nearness: Nearness
) -> Iterator[str]:
    """Yield, for each sampled clip of a unit, what is wrong with it; empty where nothing is."""
    index = read_index(config.cache, unit.unit)
    rows = {row["clip_id"]: row for row in index.to_pylist() if config.takes(row["clip_id"])}
    chosen = [clip for clip in unit.clips if clip.clip_id in rows]
    with storage.open_file(storage.join(config.cache, "shards", f"{unit.unit_id}.tar")) as shard:
        for first in range(0, len(chosen), CHUNK_CLIPS):
            clips = chosen[first : first + CHUNK_CLIPS]
            heard: list[tuple[Clip, Tensor]] = []
            for clip in clips:
                try:
                    wave = load_clip(clip.located(), channel=recipe.channel, open_file=storage.open_file)
                    heard.append((clip, wave))
                except (AudioError, OSError) as error:
                    yield f"clip {clip.clip_id} cannot be encoded anew: {error}"
            features = encoder.encode([wave for _, wave in heard])
            for (clip, wave), frames in zip(heard, features, strict=True):
                row = rows[clip.clip_id]
                stored = stored_frames(read_members(shard, row, recipe), row, recipe)
                try:
                    computed = _as_stored(frames, wave, recipe)
                    faults = nearness.add(computed, stored, tolerance_db=config.tolerance_db)
                except EncoderError as error:  # what is computed now cannot be stored
                    faults = [str(error)]
                if not faults:
                    yield ""
                    continue
                digest = hashlib.blake2b(wave.numpy().tobytes(), digest_size=16).hexdigest()
                why = "" if digest == row["source_digest"] else "; its recording has changed since"
                yield f"clip {clip.clip_id} ({', '.join(clip.recordings)}): {'; '.join(faults)}{why}"


def _as_stored(frames: Mapping[str, Tensor], wave: Tensor, recipe: Recipe) -> dict[str, Tensor]:
    """Return what a reader would get of a clip that is encoded now: float32 [T, C] of each stream."""
    back = {name: dequantise(quantise(values, recipe.codec), recipe.codec).cpu() for name, values in frames.items()}
    if recipe.speech_frames == "heard":
        back["speech"] = back["speech"][: int(heard_frames([wave.numel() / SAMPLE_RATE_HZ])[0])]
    return back
