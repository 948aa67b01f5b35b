"""What travels between the driver of an extraction and its actors."""

from dataclasses import dataclass, field

from pipelines.cache.index import ShardInfo
from pipelines.cache.recipe import Recipe

MIN_FIDELITY_DB = 30.0


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
    min_fidelity_db: float = MIN_FIDELITY_DB


@dataclass(frozen=True)
class UnitStats:
    """What a unit sends back: the shard's numbers and where the seconds went."""

    shard: ShardInfo
    seconds: float
    device: str
    parts: dict[str, float] = field(default_factory=dict)
