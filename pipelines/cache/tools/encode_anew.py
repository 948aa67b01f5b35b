"""A sample of a cache's clips encoded anew from their recordings, beside what is stored of them."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encoders.audio import SAMPLE_RATE_HZ, AudioError
from encoders.clip_encoder import ClipEncoder
from encoders.codecs import dequantise, measure_fidelity, quantise
from encoders.errors import EncoderError
from encoders.features import OWN_ENCODER, STORED_TYPES, Fidelity, heard_frames
from encoders.sound.clips import load_clip
from pipelines import storage
from pipelines.cache.bounds import NPY_HEADER_NBYTES
from pipelines.cache.encoder_recipe import load_encoder_of
from pipelines.cache.index import committed_units, member_name, read_index
from pipelines.cache.plan import ExtractUnit, read_units
from pipelines.cache.recipe import Recipe, read_recipe
from pipelines.cache.shard import read_stored
from pipelines.cache.tools.config import CacheVerifyConfig
from pipelines.errors import JobIncompleteError, UserError
from pipelines.interface.devices import local_device
from pipelines.interface.words import counted
from pipelines.manifest.tables import Clip, corpus_roots

CHUNK_CLIPS = 32
"""Decoded and encoded together: 61 MB of waves."""


@dataclass
class _Findings:
    fidelities: dict[str, list[Fidelity]] = field(default_factory=dict)
    clips: int = 0
    faults: int = 0


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
        beats=config.beats or _recorded(encoders.get("audio", "none")),
        device=local_device(config.device),
        here=config.cache,
        there="the encoder of this command",
    )
    found = _Findings({stream: [] for stream in sorted(recipe.streams)})
    roots = corpus_roots(config.manifest) if config.manifest else {}
    committed = committed_units(config.cache)
    with torch.inference_mode():
        for unit in read_units(config.cache, roots=roots):
            if unit.unit in committed:
                for line in _faults(config, recipe, encoder, unit, found):
                    print(line)
                    found.faults += 1
    if not found.clips:
        raise UserError(f"{config.cache}: sample={config.sample:g}: has no clip of this cache; take a larger one")
    for stream, measured in found.fidelities.items():
        snrs, worst = [one.snr_db for one in measured], min((one.worst_cosine for one in measured), default=1.0)
        if snrs:
            print(
                f"{stream}: {counted(len(snrs), 'clip')} encoded anew, SNR {np.median(snrs):.1f} dB (median), "
                f"{min(snrs):.1f} dB (lowest); worst cosine {worst:.6f}"
            )
    if found.faults:
        raise JobIncompleteError(
            f"{config.cache}: {found.faults} of {counted(found.clips, 'clip')} are not what their recordings give today"
        )


def _recorded(beats: str) -> str:
    """Return the recorded encoder, unless it is code: a cache from elsewhere does not choose what runs here."""
    if OWN_ENCODER.fullmatch(beats):
        raise UserError(f"beats: the cache names the encoder {beats}, which is code; beats={beats} allows it")
    return beats


def _faults(
    config: CacheVerifyConfig, recipe: Recipe, encoder: ClipEncoder, unit: ExtractUnit, found: _Findings
) -> Iterator[str]:
    """Yield a line for each sampled clip of a unit that is too far away, and add the others' measures."""
    index = read_index(config.cache, unit.unit)
    rows = {row["clip_id"]: row for row in index.to_pylist() if config.takes(row["clip_id"])}
    chosen = [clip for clip in unit.clips if clip.clip_id in rows]
    with storage.open_file(storage.join(config.cache, "shards", f"{unit.unit_id}.tar")) as shard:
        for first in range(0, len(chosen), CHUNK_CLIPS):
            clips = chosen[first : first + CHUNK_CLIPS]
            found.clips += len(clips)
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
                stored = _stored_frames(read_stored(shard, row, clip, recipe).members, row, recipe)
                try:
                    faults = _compare(stored, _as_stored(frames, wave, recipe), config.tolerance_db, found)
                except EncoderError as error:  # no number
                    faults = [str(error)]
                if faults:
                    digest = hashlib.blake2b(wave.numpy().tobytes(), digest_size=16).hexdigest()
                    why = "" if digest == row["source_digest"] else "; its recording has changed since"
                    yield f"clip {clip.clip_id} ({', '.join(clip.recordings)}): {'; '.join(faults)}{why}"


def _as_stored(frames: Mapping[str, Tensor], wave: Tensor, recipe: Recipe) -> dict[str, Tensor]:
    """Return what a reader would get of a clip that is encoded now: float32 [T, C] of each stream."""
    back = {name: dequantise(quantise(values, recipe.codec), recipe.codec).cpu() for name, values in frames.items()}
    if recipe.speech_frames == "heard":
        back["speech"] = back["speech"][: int(heard_frames([wave.numel() / SAMPLE_RATE_HZ])[0])]
    return back


def _stored_frames(members: Mapping[str, bytes], row: Mapping[str, Any], recipe: Recipe) -> dict[str, Tensor]:
    """Return a stored clip's streams, float32 [T, C]."""
    stored, streams = STORED_TYPES[recipe.codec], {}
    dtypes = {"": stored.dtype, "scale": "float32"}
    for stream, about in recipe.streams.items():
        parts = {}
        for part in stored.parts:
            values = bytearray(memoryview(members[member_name(stream, part)])[NPY_HEADER_NBYTES:])
            shape = (row[f"{stream}_frames"], about.width) if part == "" else (about.width,)
            parts[part] = torch.from_numpy(np.frombuffer(values, dtypes[part]).reshape(shape))
        streams[stream] = dequantise(parts, recipe.codec)
    return streams


def _compare(
    stored: Mapping[str, Tensor], computed: Mapping[str, Tensor], tolerance_db: float, found: _Findings
) -> Sequence[str]:
    """Return what is wrong with each stream of a clip."""
    faults = []
    for stream, frames_TC in computed.items():
        if stored[stream].shape != frames_TC.shape:
            faults.append(f"{stream} has {len(stored[stream])} frames, of which {len(frames_TC)} are computed now")
            continue
        measured = measure_fidelity(frames_TC, stored[stream])
        found.fidelities[stream].append(measured)
        if not measured.snr_db >= tolerance_db:  # NaN is none
            faults.append(f"{stream} has an SNR of {measured.snr_db:.1f} dB, worst cosine {measured.worst_cosine:.4f}")
    return faults
