"""What the parts of an extraction tell each other: the driver its actors, an actor the driver, the plan the report."""

from dataclasses import dataclass, field

from pipelines.cache.index import ShardInfo
from pipelines.cache.recipe import Recipe

MIN_FIDELITY_DB = 30.0


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """What an actor needs: where the encoders are, how they run, where shards go."""

    cache: str
    whisper: str
    beats: str
    recipe: Recipe
    device: str
    threads: int
    batch_clips: int
    min_fidelity_db: float = MIN_FIDELITY_DB
    reject_doubtful: bool = False
    reject_absent: bool = False


@dataclass(frozen=True)
class UnitStats:
    """What a unit sends back: the shard's numbers and where the seconds went."""

    shard: ShardInfo
    seconds: float
    device: str
    parts: dict[str, float] = field(default_factory=dict)
    node: str = ""
    rejects_by_stage: dict[str, int] = field(default_factory=dict)
    """Of the clips that this attempt rejected: none where it found the unit committed."""


@dataclass(frozen=True)
class Forecast:
    """What a job was to do, known before it began; a worker's clips per second are 0 where nobody has forecast them."""

    clips: int
    hours: float
    nbytes: int
    clips_per_second: float

    def seconds(self, workers: int) -> float:
        """Return how long the job was to take, 0 where that was not forecast."""
        return self.clips / (workers * self.clips_per_second) if self.clips_per_second else 0.0
