"""The keys of the `salmonn cache` verbs."""

import random
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

from omegaconf import MISSING

from pipelines.cache.recipe import read_recipe
from pipelines.errors import UserError
from pipelines.interface.config import require_range


@dataclass(frozen=True)
class CacheInfoConfig:
    cache: str = MISSING
    """[URI] Folder of the feature cache."""


@dataclass(frozen=True)
class CacheLsConfig:
    cache: str = MISSING
    """[URI] Folder of the feature cache."""
    shard: int = -1
    """[number] Only this shard's clips; -1: all."""
    corpus: str = ""
    """[name] Only clips of this corpus; empty: all."""
    clip: str = ""
    """[text] Only clips whose clip_id begins so."""
    limit: int = 50
    """[count] Most clips shown; 0: all."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require_range(self, ("shard",), low=-1)
        require_range(self, ("limit",), low=0)


@dataclass(frozen=True)
class CachePruneConfig:
    cache: str = MISSING
    """[URI] Folder of the feature cache."""
    manifest: list[str] = field(default_factory=list)
    """[URIs] Folders of the manifests whose clips stay; none: all stay, each once, and only stray files go."""
    min_waste: float = 0.2
    """[fraction] Share of a shard's clips that must be unwanted for it to be written anew."""
    apply: bool = False
    """[true/false] Do it; otherwise only say what would be done."""
    idle_minutes: float = 10.0
    """[minutes] A cache with an unfinished file written to in this time counts as in use and is left alone."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require_range(self, ("min_waste",), low=0, high=1)
        require_range(self, ("idle_minutes",), low=0)


@dataclass(frozen=True)
class CacheShowConfig:
    cache: str = MISSING
    """[URI] Folder of the feature cache."""
    clip: str = MISSING
    """[text] The clip's clip_id, or as much of its beginning as no other clip shares."""
    out: str = MISSING
    """[URI] The picture: .png or .svg."""
    manifest: str = ""
    """[URI] Folder of a manifest that says where the recordings are today; empty: where they were when planned."""

    def __post_init__(self) -> None:
        """Check the picture's ending."""
        if PurePosixPath(self.out.partition("?")[0]).suffix not in (".png", ".svg"):
            raise UserError(f"out={self.out}: must end in .png or .svg")

    def require_paths(self) -> None:
        """Check that what is read is there."""
        read_recipe(self.cache)


@dataclass(frozen=True)
class CacheVerifyConfig:
    cache: str = MISSING
    """[URI] Folder of the feature cache."""
    sample: float = 1.0
    """[fraction] Share of each shard's clips that are read; 1: every byte, also those between the arrays. The same seed
    takes the same clips."""
    seed: int = 0
    """[number] Chooses the clips that are read."""
    encode: bool = False
    """[true/false] Encode the sampled clips anew from their recordings, and compare."""
    whisper: str = ""
    """[path|tiny] Whisper for encode=true; empty: where the cache was made from."""
    beats: str = ""
    """[path|tiny|none|module:function] BEATs for encode=true; empty: where the cache was made from, unless that is
    code."""
    manifest: str = ""
    """[URI] Folder of a manifest that says where the recordings are today; empty: where they were when planned."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """[name] Where the encoders run with encode=true."""
    tolerance_db: float = 30.0
    """[dB] Lowest signal-to-noise ratio of a stored clip against the one encoded anew; 30 dB are an error of 3 %."""
    repair: bool = False
    """[true/false] Take faulty shards out of the index, so that extract with the same keys makes them anew; nothing
    else is touched."""
    threads: int = 4
    """[count] Shards read at a time."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require_range(self, ("sample",), low=0, high=1)
        require_range(self, ("threads",), low=1)
        if self.encode and self.repair:
            raise UserError("encode=true: only compares; repair=true is a command of its own")

    def takes(self, clip_id: str) -> bool:
        """Say whether a clip is in the sample: its id, the seed and the share alone decide."""
        return _is_sampled(clip_id, self.seed, self.sample)


@dataclass(frozen=True)
class CacheDiffConfig:
    a: str = MISSING
    """[URI] Folder of a feature cache."""
    b: str = MISSING
    """[URI] Folder of another one."""
    sample: float = 0.0
    """[fraction] Share of the clips in both that are read and compared, value by value; the same seed takes the same
    clips."""
    seed: int = 0
    """[number] Chooses the clips that are read."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require_range(self, ("sample",), low=0, high=1)

    def takes(self, clip_id: str) -> bool:
        """Say whether a clip is in the sample."""
        return _is_sampled(clip_id, self.seed, self.sample)

    def require_paths(self) -> None:
        """Check that what is read is there."""
        for cache in (self.a, self.b):
            read_recipe(cache)


def _is_sampled(clip_id: str, seed: int, share: float) -> bool:
    return random.Random(f"{seed}:{clip_id}").random() < share


@dataclass(frozen=True)
class CacheExportConfig:
    cache: str = MISSING
    """[URI] Folder of the feature cache that clips are taken from."""
    out: str = MISSING
    """[URI] Folder of the cache they go to; it is made, or continued if it has the same recipe."""
    clips: list[str] = field(default_factory=list)
    """[names] The clips by clip_id; in place of a manifest."""
    manifest: str = ""
    """[URI] Folder of the manifest whose clips are taken, as far as the cache holds them."""
    splits: list[str] = field(default_factory=list)
    """[names] Of the manifest, only the clips of examples of these splits; none: all."""
    tasks: list[str] = field(default_factory=list)
    """[names] Of the manifest, only the clips of examples of these tasks; none: all."""
    shard_megabytes: int = 512
    """[MB] Predicted size at which a shard is full."""
    threads: int = 4
    """[count] Shards copied at a time."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require_range(self, ("shard_megabytes", "threads"), low=1)
        if bool(self.clips) == bool(self.manifest):
            raise UserError("either clips=… or manifest=… says what is exported")
        if self.clips and (self.splits or self.tasks):
            raise UserError("splits=… and tasks=… choose among a manifest's clips; clips=… names them")


@dataclass(frozen=True)
class CacheTrimConfig:
    cache: str = MISSING
    """[URI] Folder of the feature cache, with all of Whisper's frames."""
    out: str = MISSING
    """[URI] Folder of the cache that holds those of the sound alone; it is made, or continued."""
    shard_megabytes: int = 512
    """[MB] Predicted size at which a shard is full."""
    threads: int = 4
    """[count] Shards copied at a time."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require_range(self, ("shard_megabytes", "threads"), low=1)

    def require_paths(self) -> None:
        """Check that what is read is there."""
        read_recipe(self.cache)


@dataclass(frozen=True)
class CacheMergeConfig:
    caches: list[str] = MISSING
    """[URIs] Folders of the feature caches, all of one recipe; a clip in several comes from the first that has it."""
    out: str = MISSING
    """[URI] Folder of the cache they go to; it is made, or continued if it has the same recipe."""
    shard_megabytes: int = 512
    """[MB] Predicted size at which a shard is full."""
    threads: int = 4
    """[count] Shards copied at a time."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require_range(self, ("shard_megabytes", "threads"), low=1)
