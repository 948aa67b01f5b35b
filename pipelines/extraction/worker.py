"""The work of an extraction: holds the encoders and turns one unit of clips into one shard."""

import hashlib
import logging
import platform
import time
from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from cluster.unit_queue import FatalUnitError
from encoders.audio import SAMPLE_RATE_HZ, AudioError
from encoders.codecs import dequantise, measure_fidelity, quantise
from encoders.errors import EncoderError
from encoders.features import Fidelity
from encoders.sound.clips import load_clip
from pipelines import storage
from pipelines.cache.cost import DECODE_WAIT, ENCODE_WAIT, WRITE
from pipelines.cache.encoder_recipe import load_encoder_of
from pipelines.cache.index import committed_shard
from pipelines.cache.plan import ExtractUnit
from pipelines.cache.shard import AlreadyCommittedError, EncodedClip, RejectedClip, write_shard
from pipelines.extraction.messages import UnitStats, WorkerConfig
from pipelines.manifest.tables import Clip

logger = logging.getLogger(__name__)

CHUNK_CLIPS = 32
"""Clips decoded and encoded together; fixed, so that a unit's batches depend on `batch_clips` alone."""
DECODE_THREADS = 2
SAMPLED_CLIPS = 4
"""Clips of a unit whose fidelity is measured: those with the smallest ids, which are digests."""


class ExtractWorker:
    """Encodes units.

    While one chunk of clips is encoded, threads decode the next and the one before is written.
    """

    def __init__(self, config: WorkerConfig) -> None:
        """Load the encoders; raises as `load_encoder_of`."""
        torch.set_num_threads(config.threads)
        self.config = config
        self.encoder = load_encoder_of(
            config.recipe,
            whisper=config.whisper,
            beats=config.beats,
            device=config.device,
            here="the job",
            there="the encoder on this machine",
        )
        on_gpu = config.device == "cuda"
        self._device = torch.cuda.get_device_name() if on_gpu else platform.machine()
        self._decoders = ThreadPoolExecutor(DECODE_THREADS)
        # On a GPU two chunks are under way, each in its own stream: one is computed while the other is copied.
        self._encoders = ThreadPoolExecutor(2 if on_gpu else 1, initializer=_own_stream if on_gpu else None)

    def ready(self) -> None:
        """Answer once the weights are loaded."""

    def run(self, unit: ExtractUnit, attempt: int) -> UnitStats:
        """Encode a unit and commit its shard; running it again gives the same bytes.

        A unit that another job has committed, before or meanwhile, is left as it is.

        Raises:
            FatalUnitError: If a sampled clip's stored features are further from those computed than allowed.
        """
        start = time.perf_counter()
        parts: defaultdict[str, float] = defaultdict(float)
        cache = self.config.cache
        info = committed_shard(cache, unit.unit)
        if info is None:
            try:
                info = write_shard(cache, unit.unit, self.config.recipe, self._encoded(unit.clips, parts))
            except AlreadyCommittedError:
                info = committed_shard(cache, unit.unit)
                assert info is not None, "an index that was there has gone"
        seconds = time.perf_counter() - start
        parts[WRITE] = seconds - parts[DECODE_WAIT] - parts[ENCODE_WAIT]
        logger.info(
            "unit %s, attempt %d: %d clips, %d rejected, %.1f MB, %.1f s",
            *(unit.unit_id, attempt, info.clips, info.rejects, info.nbytes / 1e6, seconds),
        )
        return UnitStats(info, seconds, self._device, dict(parts))

    def _encoded(self, clips: tuple[Clip, ...], parts: defaultdict[str, float]) -> Iterator[EncodedClip | RejectedClip]:
        """Yield every clip in order; `parts` gets the seconds of everything but writing."""
        sampled = {clip.clip_id for clip in sorted(clips, key=lambda clip: clip.clip_id)[:SAMPLED_CLIPS]}
        chunks = [clips[first : first + CHUNK_CLIPS] for first in range(0, len(clips), CHUNK_CLIPS)]
        decoding = [self._decoders.submit(self._decode, clip) for clip in chunks[0]]
        encoding: deque[Future[tuple[list[EncodedClip | RejectedClip], dict[str, float]]]] = deque()
        for following in (*chunks[1:], ()):
            start = time.perf_counter()
            decoded = [future.result() for future in decoding]
            parts[DECODE_WAIT] += time.perf_counter() - start
            decoding = [self._decoders.submit(self._decode, clip) for clip in following]
            encoding.append(self._encoders.submit(self._encode, decoded, sampled))
            while encoding and (len(encoding) > 1 or not following):
                start = time.perf_counter()
                encoded, seconds = encoding.popleft().result()
                parts[ENCODE_WAIT] += time.perf_counter() - start
                for part, value in seconds.items():
                    parts[part] += value
                yield from encoded

    def _decode(self, clip: Clip) -> tuple[Clip, Tensor] | RejectedClip:
        try:
            return clip, load_clip(clip.located(), channel=self.config.recipe.channel, open_file=storage.open_file)
        except AudioError as error:
            return RejectedClip(clip, error)

    def _encode(
        self, decoded: list[tuple[Clip, Tensor] | RejectedClip], sampled: Collection[str]
    ) -> tuple[list[EncodedClip | RejectedClip], dict[str, float]]:
        """Return the chunk's clips with their features on the host, and the seconds of each part."""
        seconds: dict[str, float] = {}
        waves = [item[1] for item in decoded if not isinstance(item, RejectedClip)]
        features = iter(self.encoder.encode(waves, batch_size=self.config.batch_clips, seconds=seconds))
        start, seconds["fidelity"] = time.perf_counter(), 0.0
        encoded = [
            item if isinstance(item, RejectedClip) else self._quantised(*item, next(features), sampled, seconds)
            for item in decoded
        ]
        return encoded, {**seconds, "quantise": time.perf_counter() - start - seconds["fidelity"]}

    def _quantised(
        self, clip: Clip, wave: Tensor, frames: dict[str, Tensor], sampled: Collection[str], seconds: dict[str, float]
    ) -> EncodedClip | RejectedClip:
        codec = self.config.recipe.codec
        try:
            arrays = {stream: quantise(frames[stream], codec) for stream in frames}
        except EncoderError as error:
            return RejectedClip(clip, AudioError(clip.recordings[0], "features", str(error)))
        fidelity = {}
        if clip.clip_id in sampled:
            start = time.perf_counter()
            fidelity = self._fidelity(clip, frames, arrays)
            seconds["fidelity"] += time.perf_counter() - start
        on_host = {stream: {name: array.cpu() for name, array in parts.items()} for stream, parts in arrays.items()}
        digest = hashlib.blake2b(wave.numpy().tobytes(), digest_size=16).hexdigest()
        return EncodedClip(clip, on_host, wave.numel() / SAMPLE_RATE_HZ, digest, fidelity)

    def _fidelity(
        self, clip: Clip, frames: Mapping[str, Tensor], arrays: Mapping[str, Mapping[str, Tensor]]
    ) -> dict[str, Fidelity]:
        codec, floor = self.config.recipe.codec, self.config.min_fidelity_db
        fidelity = {name: measure_fidelity(frames[name], dequantise(arrays[name], codec)) for name in frames}
        for name, measured in fidelity.items():
            if measured.snr_db < floor:
                raise FatalUnitError(
                    f"{name} of clip {clip.clip_id} ({', '.join(clip.recordings)}) comes back from {codec} with a "
                    f"signal-to-noise ratio of {measured.snr_db:.1f} dB, below min_fidelity_db={floor}"
                )
        return fidelity


def _own_stream() -> None:
    torch.cuda.set_stream(torch.cuda.Stream())
