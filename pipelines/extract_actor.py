"""An actor of an extraction as the driver sees it: what goes in and comes out; PyTorch is loaded in the actor alone."""

from dataclasses import dataclass, field

from pipelines.cache_index import ShardInfo
from pipelines.plan import ExtractUnit
from pipelines.recipe import Recipe

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


class ExtractActor:
    """An `ExtractWorker` in a process of its own; plain Python, wrapped as a Ray actor where it is used."""

    def __init__(self, config: WorkerConfig) -> None:
        from pipelines.extract_worker import ExtractWorker  # brings PyTorch, which the driver does without

        self._worker = ExtractWorker(config)

    def ready(self) -> None:
        """Answer once the weights are loaded."""

    def run(self, unit: ExtractUnit, attempt: int) -> UnitStats:
        """Encode a unit and commit its shard. Raises as `ExtractWorker.run`."""
        return self._worker.run(unit, attempt)
