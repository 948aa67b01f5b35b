"""The keys of `salmonn extract`."""

import re
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from omegaconf import MISSING

from cluster.config import RayConfig
from cluster.limits import QueueLimits
from encoders.audio import CLIP_SECONDS, MOST_SECONDS
from encoders.features import Codec, Kernel, SpeechFrames, is_file
from pipelines import storage
from pipelines.errors import UserError
from pipelines.extraction.messages import MIN_FIDELITY_DB
from pipelines.interface.config import require_range
from pipelines.interface.words import command
from pipelines.manifest.tables import require_clips

MEGABYTE = 1_000_000
RECIPE_KEYS = ("whisper", "beats", "codec", "precision", "attention", "channel", "speech_frames", "max_clip_seconds")
ConfigT = TypeVar("ConfigT", bound="ExtractConfig")


@dataclass(frozen=True)
class ExtractConfig:
    manifest: str = MISSING
    """[URI] Folder of the manifest whose clips are encoded."""
    cache: str = MISSING
    """[URI] Folder of the feature cache; it is made, or continued where an earlier run stopped."""
    whisper: str = MISSING
    """[path|tiny] Hugging Face folder of a Whisper model; tiny: a small seeded random one."""
    beats: str = MISSING
    """[path|tiny|none|module:function] BEATs checkpoint (.pt); tiny: a small seeded random one; none: no audio stream;
    module:function: another frozen encoder (docs/encoders.md)."""
    codec: Codec = "float16"
    """[name] How features are stored: float16, or int8 with a scale per channel and clip."""
    speech_frames: SpeechFrames = "all"
    """[name] all: Whisper's 1,500 frames of every clip. heard: those that overlap the clip's sound, the same bits, for
    runs that train with hear=clip."""
    max_clip_seconds: float = 30.0
    """[seconds] Longer clips are cut. Above 30 a longer clip is encoded in equal pieces of at most 30 s and their
    frames are joined, for runs that train with hear=clip and heard_seconds; give prepare the same."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """[dtype] What the encoders compute in."""
    attention: Kernel = "sdpa"
    """[name] Attention of BEATs: sdpa anywhere; flex: one fused kernel, compiled at the start, meant for GPUs."""
    channel: str = "first"
    """[name|number] Channel of each recording that is heard: first, mean (of all), or a number from 0."""
    shard_megabytes: int = 512
    """[MB] Predicted size at which a shard is full."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """[name] Where the encoders run; auto: a GPU each if the cluster has any."""
    workers: int = 0
    """[count] Encoding actors; 0: as many as the cluster has room for."""
    threads: int = 1
    """[count] CPU threads (and Ray CPUs) of each actor."""
    batch_clips: int = 8
    """[clips] Clips per encoder batch."""
    min_fidelity_db: float = MIN_FIDELITY_DB
    """[dB] Lowest signal-to-noise ratio at which the codec may give a stream back: it is measured on up to 4 clips of a
    shard, and one below ends the job. 30 dB are an error of 3 %; Whisper's frames have about 43 in int8, 73 in
    float16."""
    max_reject_fraction: float = 0.05
    """[fraction] Share of all planned clips that may be rejected, rounded up to clips; the job stops once there are
    more, or once a run's first clips, 2,000 or more, show beyond doubt (Wilson's bound) that there will be."""
    reject_doubtful: bool = False
    """[true/false] Reject clips that are heard with a doubt: an Ogg whose end is not marked may have been cut, a heard
    channel is silent beside another that sounds. Otherwise `cache info` counts them."""
    reject_absent: bool = False
    """[true/false] Reject clips whose recordings one node does not find; otherwise another node must miss them too, or
    `prepare` must have said so, and what one node alone misses fails."""
    replace_changed: bool = False
    """[true/false] Encode the shards again that hold clips whose recordings the manifest knows to be others now."""
    retry_rejects: bool = False
    """[true/false] Encode the shards again that hold rejected clips, once what was wrong with those is mended."""
    clips_per_second: float = 0.0
    """[clips/s] One worker's speed as `salmonn plan extract` forecasts it; the closing report compares; 0: unknown."""
    price_per_hour: float = 0.0
    """[money] An hour of a worker's device, for the closing report; 0: unknown."""
    limits: QueueLimits = field(default_factory=QueueLimits)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        """Check ranges."""
        require_range(self, ("shard_megabytes", "threads", "batch_clips"), low=1)
        require_range(self, ("workers", "clips_per_second", "price_per_hour"), low=0)
        require_range(self, ("max_reject_fraction",), low=0, high=1)
        require_range(self, ("max_clip_seconds",), low=CLIP_SECONDS, high=MOST_SECONDS)
        if self.channel not in ("first", "mean") and not re.fullmatch(r"\d", self.channel):
            raise UserError(f"channel={self.channel}: must be first, mean, or a number from 0 to 9")

    def next_step(self) -> str:
        """Return the command that goes on from here."""
        is_tiny = self.whisper == "tiny"
        keys = {"run": "RUN", "llm": "tiny"} if is_tiny else {"runs": "RUNS", "llm": "LLM", "mix": ""}
        keys |= {"hear": "clip"} if self.speech_frames == "heard" or self.max_clip_seconds > CLIP_SECONDS else {}
        keys |= {"heard_seconds": f"{self.max_clip_seconds:g}"} if self.max_clip_seconds > CLIP_SECONDS else {}
        return command("train", "tiny" if is_tiny else "stage1", manifest=self.manifest, cache=self.cache, **keys)


def with_full_paths(config: ConfigT) -> ConfigT:
    """Return the config with paths that mean the same in every folder."""
    return replace(
        config,
        manifest=storage.full_path(config.manifest),
        cache=storage.full_path(config.cache) if config.cache else "",
        whisper=_full_path(config.whisper),
        beats=_full_path(config.beats),
    )


def encoder_keys(config: ExtractConfig) -> dict[str, Any]:
    """Return what `load_encoder_and_recipe` wants to know."""
    return {key: getattr(config, key) for key in RECIPE_KEYS}


def _full_path(encoder: str) -> str:
    return storage.full_path(encoder) if is_file(encoder) else encoder


@dataclass(frozen=True)
class PlanExtractConfig(ExtractConfig):
    cache: str = ""
    """[URI] Folder of a feature cache whose clips need not be encoded again; empty: all are to be encoded."""
    clips_per_second: float = 0.0
    """[clips/s] A worker's speed where it is known; 0: measured here, on clips of the manifest."""
    calibration_seconds: float = 10.0
    """[seconds] Time spent on measuring, once the encoders are warm."""
    terabyte_price: float = 0.0
    """[money] A terabyte (10¹² bytes) for as long as the cache is kept; counts in the break-even, by price_per_hour."""
    budget_terabytes: float = 0.0
    """[TB] Room for the cache, in 10¹² bytes: the table says which ways to store it fit. 0: not asked."""
    json: bool = False
    """[true/false] Print JSON instead of a table."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        require_range(self, ("calibration_seconds", "budget_terabytes", "terabyte_price"), low=0)
        if self.terabyte_price and not self.price_per_hour:
            raise UserError(f"terabyte_price={self.terabyte_price}: means nothing without price_per_hour")

    def require_paths(self) -> None:
        """Check that what is read is there."""
        require_clips(self.manifest)

    def next_step(self) -> str:
        """Return the command that goes on from here."""
        recipe = encoder_keys(self)
        changed = {key: str(value) for key, value in recipe.items() if value != getattr(ExtractConfig, key)}
        return command("extract", manifest=self.manifest, cache=self.cache or "CACHE", **changed)
