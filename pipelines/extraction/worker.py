"""The work of an extraction: holds the encoders and turns one unit of clips into one shard."""

import hashlib
import logging
import math
import platform
import time
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor

from cluster.unit_queue import Attempt, FatalUnitError, NotHereError
from encoders.audio import CLIP_SECONDS, SAMPLE_RATE_HZ, AbsentError, AudioError
from encoders.codecs import dequantise, measure_fidelity, quantise
from encoders.errors import EncoderError
from encoders.features import Fidelity, heard_frames
from encoders.sound.clips import load_clip
from encoders.sound.recordings import UnreadableError
from pipelines import storage
from pipelines.cache.cost import DECODE_WAIT, ENCODE_WAIT, WRITE
from pipelines.cache.encoder_recipe import load_encoder_of
from pipelines.cache.index import committed_shard
from pipelines.cache.plan import ExtractUnit
from pipelines.cache.shard import AlreadyCommittedError, EncodedClip, RejectedClip, write_shard
from pipelines.errors import UserError
from pipelines.extraction.messages import UnitStats, WorkerConfig
from pipelines.manifest.sources import open_unchanged
from pipelines.manifest.tables import Clip

logger = logging.getLogger(__name__)

CHUNK_CLIPS = 32
"""Clips decoded and encoded together, fewer where some are over 30 s; so that a unit's batches depend on its clips and
`batch_clips` alone, it is fixed."""
DECODE_THREADS = 2
SAMPLED_CLIPS = 4
"""Clips of a unit whose fidelity is measured: those with the smallest ids, which are digests."""


@dataclass(frozen=True)
class _HeardClip:
    """A clip's wave, float32 [samples] at 16 kHz, and why it may not be what was recorded."""

    clip: Clip
    wave: Tensor
    doubt: str


class ExtractWorker:
    """Encodes units.

    While one chunk of clips is encoded, threads decode the next and the one before is written.
    """

    def __init__(self, config: WorkerConfig, node: str = "here") -> None:
        """Load the encoders; `node` is where this is. Raises as `load_encoder_of`."""
        self.node = node
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
        self._encoded_clips, self._counting = 0.0, Lock()
        # On a GPU two chunks are under way, each in its own stream: one is computed while the other is copied.
        self._encoders = ThreadPoolExecutor(2 if on_gpu else 1, initializer=_own_stream if on_gpu else None)

    def run(self, unit: ExtractUnit, attempt: Attempt) -> UnitStats:
        """Encode a unit and commit its shard; running it again gives the same bytes.

        A unit that another job has committed, before or meanwhile, is left as it is. A clip whose recording is absent
        is rejected only where that is no fault of this node: another node misses the same recording, or `prepare` could
        not read it either, or the config says that one node's word is enough.

        Raises:
            FatalUnitError: If a sampled clip's stored features are further from those computed than allowed.
            NotHereError: If recordings are absent or cannot be read on this node; it tells the next one which.
        """
        start = time.perf_counter()
        self._encoded_clips = 0.0
        parts: defaultdict[str, float] = defaultdict(float)
        rejected: Counter[str] = Counter()
        cache = self.config.cache
        info = committed_shard(cache, unit.unit)
        if info is None:
            elsewhere = {node: absent for node, absent in attempt.refusals.items() if node != self.node}
            known = {recording: node for node, absent in elsewhere.items() for recording in absent}
            if attempt.refusals:
                self._require_recordings(unit, known)  # before anything is encoded
            try:
                clips = self._encoded(unit.clips, known, parts, rejected)
                info = write_shard(cache, unit.unit, self.config.recipe, clips)
            except AlreadyCommittedError:
                rejected.clear()  # the other one has told of them
                info = committed_shard(cache, unit.unit)
                assert info is not None, "an index that was there has gone"
            except AbsentError:
                self._require_recordings(unit, known)
                raise
        seconds = time.perf_counter() - start
        parts[WRITE] = seconds - parts[DECODE_WAIT] - parts[ENCODE_WAIT]
        logger.info(
            "unit %s, attempt %d: %d clips, %d rejected, %.1f MB, %.1f s",
            *(unit.unit_id, attempt.number, info.clips, info.rejects, info.nbytes / 1e6, seconds),
        )
        return UnitStats(info, seconds, self._device, dict(parts), self.node, dict(rejected))

    def clips_done(self) -> float:
        """Return how many clips of the running unit are encoded; a clip of which one stream is, counts as a half."""
        return self._encoded_clips

    def _count(self, clips: float) -> None:
        with self._counting:
            self._encoded_clips += clips

    def _require_recordings(self, unit: ExtractUnit, known: Mapping[str, str]) -> None:
        """Refuse a unit with recordings that are absent here, but for those that another node misses too."""
        clips = (clip for clip in unit.clips if not _was_absent(clip))
        named = list(dict.fromkeys(segment.recording for clip in clips for segment in clip.located()))
        are_there = self._decoders.map(_is_there, named)
        absent = [recording for recording, is_there in zip(named, are_there, strict=True) if not is_there]
        here_alone = [recording for recording in absent if recording not in known]
        if here_alone:
            more = f" and {len(here_alone) - 1} other recordings of the unit" if len(here_alone) > 1 else ""
            raise NotHereError(self.node, absent, f"{here_alone[0]}{more}: no such file, or no permission to read it")

    def _encoded(
        self,
        clips: tuple[Clip, ...],
        known: Mapping[str, str],
        parts: defaultdict[str, float],
        rejected: Counter[str],
    ) -> Iterator[EncodedClip | RejectedClip]:
        """Yield every clip in order; `parts` gets the seconds of everything but writing, `rejected` counts by stage."""
        sampled = {clip.clip_id for clip in sorted(clips, key=lambda clip: clip.clip_id)[:SAMPLED_CLIPS]}
        chunks = list(_chunks(clips, self.config.recipe.max_clip_seconds))
        decoding = [self._decoders.submit(self._decode, clip, known) for clip in chunks[0]]
        encoding: deque[Future[tuple[list[EncodedClip | RejectedClip], dict[str, float]]]] = deque()
        for following in (*chunks[1:], ()):
            start = time.perf_counter()
            decoded = [future.result() for future in decoding]
            parts[DECODE_WAIT] += time.perf_counter() - start
            decoding = [self._decoders.submit(self._decode, clip, known) for clip in following]
            encoding.append(self._encoders.submit(self._encode, decoded, sampled))
            while encoding and (len(encoding) > 1 or not following):
                start = time.perf_counter()
                encoded, seconds = encoding.popleft().result()
                parts[ENCODE_WAIT] += time.perf_counter() - start
                for part, value in seconds.items():
                    parts[part] += value
                rejected.update(clip.error.stage for clip in encoded if isinstance(clip, RejectedClip))
                yield from encoded

    def _decode(self, clip: Clip, known: Mapping[str, str]) -> "_HeardClip | RejectedClip":
        doubts: list[AudioError] = []
        try:
            channel, open_file = self.config.recipe.channel, open_unchanged(clip)
            wave = load_clip(
                clip.located(),
                channel=channel,
                max_clip_seconds=self.config.recipe.max_clip_seconds,
                open_file=open_file,
                on_doubt=doubts.append,
            )
            if doubts and self.config.reject_doubtful:
                raise doubts[0]
            return _HeardClip(clip, wave, doubts[0].reason if doubts else "")
        except AbsentError as error:
            other = known.get(error.recording)
            if other:
                reason = f"{error.reason} on node {self.node}, nor on node {other}"
                return RejectedClip(clip, AbsentError(error.recording, error.stage, reason))
            if _was_absent(clip) or self.config.reject_absent:
                return RejectedClip(clip, error)
            raise
        except AudioError as error:
            return RejectedClip(clip, error)
        except OSError as error:
            raise NotHereError(self.node, (), f"{', '.join(clip.recordings)}: {error}") from error

    def _encode(
        self, decoded: "list[_HeardClip | RejectedClip]", sampled: Collection[str]
    ) -> tuple[list[EncodedClip | RejectedClip], dict[str, float]]:
        """Return the chunk's clips with their features on the host, and the seconds of each part."""
        seconds: dict[str, float] = {}
        waves = [item.wave for item in decoded if not isinstance(item, RejectedClip)]
        self._count(len(decoded) - len(waves))
        batch_size = self.config.batch_clips
        features = iter(self.encoder.encode(waves, batch_size=batch_size, seconds=seconds, on_clips=self._count))
        start, seconds["fidelity"] = time.perf_counter(), 0.0
        encoded = [
            item if isinstance(item, RejectedClip) else self._quantised(item, next(features), sampled, seconds)
            for item in decoded
        ]
        return encoded, {**seconds, "quantise": time.perf_counter() - start - seconds["fidelity"]}

    def _quantised(
        self, heard: "_HeardClip", frames: dict[str, Tensor], sampled: Collection[str], seconds: dict[str, float]
    ) -> EncodedClip | RejectedClip:
        clip, wave = heard.clip, heard.wave
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
        if self.config.recipe.speech_frames == "heard":  # cut last: what is kept is what a cache of all frames stores
            arrays["speech"][""] = arrays["speech"][""][: int(heard_frames([wave.numel() / SAMPLE_RATE_HZ])[0])]
        on_host = {stream: {name: array.cpu() for name, array in parts.items()} for stream, parts in arrays.items()}
        digest = hashlib.blake2b(wave.numpy().tobytes(), digest_size=16).hexdigest()
        return EncodedClip(clip, on_host, wave.numel() / SAMPLE_RATE_HZ, digest, fidelity, heard.doubt)

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


def _chunks(clips: Sequence[Clip], max_clip_seconds: float) -> Iterator[Sequence[Clip]]:
    """Yield clips in order, as many at a time as last no longer than CHUNK_CLIPS of 30 s; one at least."""
    chunk: list[Clip] = []
    room = CHUNK_CLIPS
    for clip in clips:
        length = min(max_clip_seconds if clip.seconds is None else clip.seconds, max_clip_seconds)
        pieces = max(1, math.ceil(length / CLIP_SECONDS))
        if chunk and pieces > room:
            yield chunk
            chunk, room = [], CHUNK_CLIPS
        chunk.append(clip)
        room -= pieces
    yield chunk


def _was_absent(clip: Clip) -> bool:
    """Say whether `prepare` could not read a recording either: the clip's length is not known."""
    return clip.seconds is None


def _is_there(recording: str) -> bool:
    try:
        storage.open_file(recording).close()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    except (OSError, UserError, UnreadableError):
        return True  # which is found out when it is read
    return True


def _own_stream() -> None:
    torch.cuda.set_stream(torch.cuda.Stream())
