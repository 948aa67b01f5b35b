"""`salmonn plan extract`: what an extraction will cost, before anything runs. Writes nothing. Letters: N clips."""

import json
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from encoders.audio import SAMPLE_RATE_HZ, AudioError
from encoders.clip_encoder import ClipEncoder
from encoders.codecs import dequantise, measure_fidelity, quantise
from encoders.features import STORED_TYPES, Codec, SpeechFrames
from encoders.sound.clips import load_clip
from pipelines import storage
from pipelines.cache.cost import break_even_epochs
from pipelines.cache.encoder_recipe import load_encoder_and_recipe
from pipelines.cache.index import committed_units
from pipelines.cache.plan import (
    clip_seconds,
    count_units,
    cut_units,
    find_new_clips,
    pending_seconds,
    predict_nbytes,
)
from pipelines.cache.recipe import Recipe, require_recipe
from pipelines.errors import UserError
from pipelines.extraction.config import MEGABYTE, PlanExtractConfig, encoder_keys, with_full_paths
from pipelines.manifest.tables import (
    CLIP_SCHEMA,
    CLIPS,
    Clip,
    clip_from_row,
    count_clips,
    examples_per_clip,
    read_batches,
    require_clips,
    take_rows,
)
from pipelines.storage.arrays import Floats, Integers

SPEECH_FRAMES_STORED: tuple[SpeechFrames, ...] = get_args(SpeechFrames)
SAMPLED_QUANTILES = (0.1, 0.5, 0.9)
MOST_FILES_LOOKED_AT = 1_000
PCM_NBYTES_PER_SECOND = 2 * SAMPLE_RATE_HZ


@dataclass(frozen=True)
class Speed:
    """What a clip costs a worker: seconds + seconds_per_second · its length; decoding runs beside it on CPU threads."""

    device: str
    seconds: float
    seconds_per_second: float
    decode_seconds: float | None
    snr_db: Mapping[Codec, float] = field(default_factory=dict)
    """[dB] Lowest of the sampled clips and streams."""


@dataclass(frozen=True)
class Stored:
    """What the clips take in one way of storing them."""

    codec: Codec
    speech_frames: SpeechFrames
    nbytes: int
    snr_db: float | None
    """[dB] Lowest of the sampled clips and streams; None where none was encoded."""
    money: float
    """For as long as the cache is kept, at `terabyte_price`."""
    fits: bool
    """Whether there is room for it, if `budget_terabytes` says how much there is."""

    def __str__(self) -> str:
        fidelity = "" if self.snr_db is None else f", {self.snr_db:.0f} dB"
        money = f", costs {self.money:,.2f}" if self.money else ""
        room = "" if self.fits else ", does not fit"
        return f"{self.codec:<8}{self.speech_frames:<6}{self.nbytes / 1e9:>12,.3f} GB{fidelity}{money}{room}"


@dataclass(frozen=True)
class ExtractForecast:
    """What is left to do and what it costs."""

    clips: int
    hours: float
    clips_in_cache: int
    shards: int
    nbytes: int
    stored: list[Stored]
    """All ways of storing them; `nbytes` are this plan's."""
    audio_nbytes: int
    audio_nbytes_from: str
    examples_per_clip: float
    device: str
    clips_per_second: float
    device_hours: float
    decode_cpu_hours: float | None
    write_megabytes_per_second: float
    read_megabytes_per_second: float
    break_even_epochs: float


def plan_extract(config: PlanExtractConfig) -> ExtractForecast:
    """Print what `salmonn extract` with the same keys would do.

    Raises:
        UserError: If the manifest is empty, an encoder cannot be loaded, the cache has another recipe, or no sampled
            clip can be read.
    """
    config = with_full_paths(config)
    with tempfile.TemporaryDirectory(prefix="salmonn-") as empty:
        return _plan(config if config.cache else replace(config, cache=empty))


def _plan(config: PlanExtractConfig) -> ExtractForecast:
    require_clips(config.manifest)
    gpu = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    encoder, recipe = load_encoder_and_recipe(**encoder_keys(config), device="cuda" if gpu else "cpu")
    require_recipe(config.cache, recipe)
    num_clips, done = count_clips(config.manifest), committed_units(config.cache)
    new, begun_N = find_new_clips(config.cache, config.manifest), pending_seconds(config.cache, done=done)
    new_nbytes_N = predict_nbytes(new.seconds, recipe, config.codec)
    new_units_N = cut_units(new_nbytes_N, shard_nbytes=config.shard_megabytes * MEGABYTE)
    seconds_N = np.minimum(np.concatenate([begun_N, new.seconds]), recipe.max_clip_seconds)
    nbytes = int(predict_nbytes(seconds_N, recipe, config.codec).sum())
    audio_nbytes, audio_nbytes_from = _audio_nbytes(config.manifest, new.rows, seconds_N)
    speed = _speed(config, encoder) if len(seconds_N) else Speed("nothing is left to encode", 0.0, 0.0, None)
    device_seconds = speed.seconds * len(seconds_N) + speed.seconds_per_second * float(seconds_N.sum())
    per_second = 1 / max(device_seconds, 1e-9)
    per_clip = examples_per_clip(config.manifest)
    money = nbytes / 1e12 * config.terabyte_price
    storage_hours = money / config.price_per_hour if money else 0.0
    forecast = ExtractForecast(
        clips=len(seconds_N),
        hours=float(seconds_N.sum()) / 3600,
        clips_in_cache=num_clips - len(seconds_N),
        shards=count_units(config.cache) - len(done) + (1 + int(new_units_N[-1]) if len(new_units_N) else 0),
        nbytes=nbytes,
        stored=_stored(config, recipe, seconds_N, speed.snr_db),
        audio_nbytes=audio_nbytes,
        audio_nbytes_from=audio_nbytes_from,
        examples_per_clip=per_clip,
        device=speed.device,
        clips_per_second=len(seconds_N) * per_second,
        device_hours=device_seconds / 3600,
        decode_cpu_hours=None if speed.decode_seconds is None else speed.decode_seconds * len(seconds_N) / 3600,
        write_megabytes_per_second=nbytes / 1e6 * per_second,
        read_megabytes_per_second=audio_nbytes / 1e6 * per_second,
        break_even_epochs=break_even_epochs(device_seconds / 3600, storage_hours, per_clip),
    )
    print(json.dumps(asdict(forecast), indent=2) if config.json else _table(forecast, config))
    return forecast


def _stored(
    config: PlanExtractConfig, recipe: Recipe, seconds_N: Floats, snr_db: Mapping[Codec, float]
) -> list[Stored]:
    room = config.budget_terabytes * 1e12 or float("inf")
    ways = []
    for codec, speech_frames in product(STORED_TYPES, SPEECH_FRAMES_STORED):
        nbytes = int(predict_nbytes(seconds_N, replace(recipe, speech_frames=speech_frames), codec).sum())
        money = nbytes / 1e12 * config.terabyte_price
        ways.append(Stored(codec, speech_frames, nbytes, snr_db.get(codec), money, nbytes <= room))
    return ways


def _audio_nbytes(manifest: str, rows_N: Integers, seconds_N: Floats) -> tuple[int, str]:
    """Return the bytes of the recordings to be read, and where the number comes from."""
    if 0 < len(rows_N) <= MOST_FILES_LOOKED_AT and len(rows_N) == len(seconds_N):
        located = [segment for clip in _read_clips(manifest, rows_N) for segment in clip.located()]
        places = {segment.recording for segment in located}
        sizes = [] if any("!" in place for place in places) else [storage.file_nbytes(place) for place in places]
        if sizes and all(sizes):
            return sum(sizes), "file sizes"
    return int(seconds_N.sum() * PCM_NBYTES_PER_SECOND), "16-bit PCM at 16 kHz; FLAC is about half, Opus a tenth"


def _read_clips(manifest: str, rows_N: Integers) -> list[Clip]:
    return [clip_from_row(row) for row in take_rows(manifest, CLIPS, CLIP_SCHEMA.names, rows_N).to_pylist()]


def _speed(config: PlanExtractConfig, encoder: ClipEncoder) -> Speed:
    if config.clips_per_second:
        return Speed("the stated device", 1 / config.clips_per_second, 0.0, None)
    torch.set_num_threads(config.threads)
    on_gpu = encoder.device.type == "cuda"
    size = config.batch_clips if on_gpu else 1
    seconds = [clip_seconds(batch) for batch in read_batches(config.manifest, CLIPS, ["seconds"])]
    order_N = np.argsort(np.concatenate(seconds), kind="stable")
    last = max(0, len(order_N) - size)
    firsts = [int(quantile * last) for quantile in SAMPLED_QUANTILES]
    sampled = [_read_clips(config.manifest, order_N[first : first + size]) for first in firsts]
    groups, decoded, started = [], 0, time.perf_counter()
    for clips in sampled:
        waves = []
        for clip in clips:
            try:
                waves.append(
                    load_clip(clip.located(), max_clip_seconds=config.max_clip_seconds, open_file=storage.open_file)
                )
            except AudioError:
                continue
        decoded += len(waves)
        if waves:
            groups.append(waves)
    if not groups:
        raise UserError(f"{config.manifest}: none of the clips sampled can be read; clips_per_second=… needs none")
    decode_seconds = (time.perf_counter() - started) / decoded
    snr_db = _snr_db(encoder, [waves[0] for waves in groups])
    fixed, per_second = fit_cost(_measure(encoder, groups, config))
    device = torch.cuda.get_device_name() if on_gpu else platform.machine()
    return Speed(device, fixed, per_second, decode_seconds, snr_db)


def _snr_db(encoder: ClipEncoder, waves: Sequence[Tensor]) -> dict[Codec, float]:
    """Return the lowest signal-to-noise ratio at which each codec gives a stream of these waves back."""
    frames = [stream for clip in encoder.encode(waves) for stream in clip.values()]
    return {
        codec: min(measure_fidelity(each, dequantise(quantise(each, codec), codec)).snr_db for each in frames)
        for codec in STORED_TYPES
    }


def _measure(
    encoder: ClipEncoder, groups: Sequence[Sequence[Tensor]], config: PlanExtractConfig
) -> list[tuple[float, float]]:
    """Return (mean length, time per clip) in seconds of groups of clips encoded in turn, at least once each."""
    points: list[tuple[float, float]] = []
    _encode(encoder, groups[0], config)
    begun = time.perf_counter()
    while not points or time.perf_counter() - begun < config.calibration_seconds:
        for waves in groups:
            start = time.perf_counter()
            _encode(encoder, waves, config)
            seconds = sum(len(wave) for wave in waves) / SAMPLE_RATE_HZ
            points.append((seconds / len(waves), (time.perf_counter() - start) / len(waves)))
    return points


def _encode(encoder: ClipEncoder, waves: Sequence[Tensor], config: PlanExtractConfig) -> None:
    for clip in encoder.encode(waves, batch_size=config.batch_clips):
        for frames in clip.values():
            for array in quantise(frames, config.codec).values():
                array.cpu()


def fit_cost(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Fit (seconds per clip, seconds per second of audio) to (length, time) by least squares; neither is negative."""
    lengths, times = np.array(points).T
    spread = lengths - lengths.mean()
    if spread.std() < 0.5:
        return float(times.mean()), 0.0
    slope = max(0.0, float(spread @ times / (spread @ spread)))
    fixed = float(times.mean() - slope * lengths.mean())
    return (fixed, slope) if fixed > 0 else (0.0, float(times.mean() / lengths.mean()))


def _table(forecast: ExtractForecast, config: PlanExtractConfig) -> str:
    counts = f"{forecast.clips:,} to encode; {forecast.clips_in_cache:,} are in the cache, or rejected there"
    if not forecast.clips:
        return f"clips      {counts}: nothing is left to do"
    decode_hours = forecast.decode_cpu_hours
    decoding = "" if decode_hours is None else f", beside them {decode_hours:,.3f} h of decoding on a CPU"
    bandwidth = f"{forecast.write_megabytes_per_second:,.1f} MB/s written"
    lines = [
        ("clips", counts),
        ("audio", f"{forecast.hours:,.3f} h, {forecast.audio_nbytes / 1e9:,.3f} GB ({forecast.audio_nbytes_from})"),
        ("shards", f"{forecast.shards:,}"),
        ("bytes", f"{forecast.nbytes / 1e9:,.3f} GB: codec={config.codec} speech_frames={config.speech_frames}"),
        *(("" if place else "stored as", str(way)) for place, way in enumerate(forecast.stored)),
        ("speed", f"{forecast.clips_per_second:,.3f} clips/s per worker ({forecast.device})"),
        ("time", f"{forecast.device_hours:,.3f} device hours{decoding}"),
        ("bandwidth", f"{bandwidth}, {forecast.read_megabytes_per_second:,.1f} MB/s read, to keep a worker busy"),
        (
            "break-even",
            f"{forecast.break_even_epochs:.2f} epochs of {forecast.examples_per_clip:.2f} examples per clip: "
            f"each one more saves {forecast.device_hours * forecast.examples_per_clip:,.3f} device hours",
        ),
    ]
    return "\n".join(f"{name:<11}{text}" for name, text in lines)
