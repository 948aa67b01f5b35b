"""One actor of an extraction: it holds the encoders and turns one unit of clips into one shard."""

import hashlib
import platform
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from encoders.audio import SAMPLE_RATE_HZ, AudioError, load_clip
from encoders.clip_encoder import ClipEncoder, load_clip_encoder
from encoders.codecs import quantise
from pipelines import storage
from pipelines.feature_cache import EncodedClip, RejectedClip, ShardInfo, write_shard
from pipelines.manifest import Clip
from pipelines.plan import ExtractUnit
from pipelines.recipe import DTYPES, Recipe, recipe_of

CHUNK_CLIPS = 32
"""Clips decoded and encoded together; fixed, so that a unit's batches depend on `batch_clips` alone."""
DECODE_THREADS = 2


@dataclass(frozen=True)
class WorkerConfig:
    """What an actor needs: where the encoders lie, how they run, where shards go."""

    cache: str
    whisper: str
    beats: str
    recipe: Recipe
    device: str
    threads: int
    batch_clips: int


@dataclass(frozen=True)
class UnitStats:
    """What a unit sends back: the shard's numbers and where the seconds went."""

    shard: ShardInfo
    seconds: float
    device: str
    parts: dict[str, float] = field(default_factory=dict)


def load_encoder(config: WorkerConfig) -> ClipEncoder:
    """Load both encoders as the recipe says.

    Raises:
        ValueError: If their weights are not those of the recipe.
    """
    recipe = config.recipe
    encoder = load_clip_encoder(
        whisper=config.whisper, beats=config.beats, device=config.device, dtype=DTYPES[recipe.precision]
    )
    found = recipe_of(encoder, codec=recipe.codec, precision=recipe.precision)
    recipe.require_same(replace(recipe, streams=found.streams), here="the job", there="the encoder on this machine")
    return encoder


class ExtractWorker:
    """Encodes units; plain Python, wrapped as a Ray actor where it is used."""

    def __init__(self, config: WorkerConfig) -> None:
        torch.set_num_threads(config.threads)
        self.config = config
        self.encoder = load_encoder(config)
        self._decoders = ThreadPoolExecutor(DECODE_THREADS)
        self._device = torch.cuda.get_device_name() if config.device == "cuda" else platform.machine()
        self._parts: defaultdict[str, float] = defaultdict(float)

    def ready(self) -> None:
        """Answer once the weights are loaded."""

    def run(self, unit: ExtractUnit, attempt: int) -> UnitStats:
        """Encode a unit and commit its shard; running it again gives the same bytes."""
        start = time.perf_counter()
        self._parts.clear()
        info = write_shard(self.config.cache, unit.unit, self.config.recipe, self._encoded(unit.clips))
        seconds = time.perf_counter() - start
        parts = dict(self._parts)
        return UnitStats(info, seconds, self._device, {**parts, "write": seconds - sum(parts.values())})

    def _encoded(self, clips: tuple[Clip, ...]) -> Iterator[EncodedClip | RejectedClip]:
        """Yield every clip in order, encoding one chunk while the next is decoded in threads."""
        chunks = [clips[first : first + CHUNK_CLIPS] for first in range(0, len(clips), CHUNK_CLIPS)]
        ahead = [self._decoders.submit(self._decode, clip) for clip in chunks[0]]
        for position, chunk in enumerate(chunks):
            start = time.perf_counter()
            waves = [future.result() for future in ahead]
            self._parts["wait for decode"] += time.perf_counter() - start
            following = chunks[position + 1] if position + 1 < len(chunks) else ()
            ahead = [self._decoders.submit(self._decode, clip) for clip in following]
            yield from self._encode_chunk(chunk, waves)

    def _decode(self, clip: Clip) -> Tensor | AudioError:
        try:
            return load_clip(clip.located(), channel=self.config.recipe.channel, open_file=storage.open_file)
        except AudioError as error:
            return error

    def _encode_chunk(
        self, clips: tuple[Clip, ...], waves: list[Tensor | AudioError]
    ) -> Iterator[EncodedClip | RejectedClip]:
        good = [wave for wave in waves if isinstance(wave, Tensor)]
        features = iter(self.encoder.encode(good, batch_size=self.config.batch_clips) if good else [])
        for part, seconds in self.encoder.timings.items() if good else ():
            self._parts[part] += seconds
        for clip, wave in zip(clips, waves, strict=True):
            yield RejectedClip(clip, wave) if isinstance(wave, AudioError) else self._stored(clip, wave, next(features))

    def _stored(self, clip: Clip, wave: Tensor, frames: dict[str, Tensor]) -> EncodedClip | RejectedClip:
        try:
            streams = {name: quantise(stream, self.config.recipe.codec) for name, stream in frames.items()}
        except ValueError as error:
            return RejectedClip(clip, AudioError(clip.recordings[0], "features", str(error)))
        digest = hashlib.blake2b(wave.numpy().tobytes(), digest_size=16).hexdigest()
        return EncodedClip(clip, streams, wave.numel() / SAMPLE_RATE_HZ, digest)
