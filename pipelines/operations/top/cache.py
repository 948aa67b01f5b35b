"""How a feature cache stands, and the job that fills it."""

from collections import Counter
from dataclasses import dataclass

from pipelines import storage
from pipelines.cache.index import committed_units, read_rejects
from pipelines.cache.layout import unit_files
from pipelines.cache.plan import count_units, unit_sizes
from pipelines.cache.recipe import read_recipe
from pipelines.operations.top.job_lines import JobLines


@dataclass(frozen=True, kw_only=True)
class CacheLook:
    """What was seen at one time; speeds are those of late."""

    holders: list[storage.Holder]
    shards: int
    planned_shards: int
    clips: int
    """Of the committed shards, the rejected among them."""
    planned_clips: int
    hours: float
    """Of audio in the committed shards, as planned."""
    planned_hours: float
    rejects: dict[str, int]
    """By stage."""
    real_time: float
    """[seconds/second] Audio encoded."""
    clips_per_second: float
    recent_seconds: float
    """Past over which they are told."""
    newest: float | None
    """[seconds since 1970] When the newest job's last shard ended."""
    failed: int
    """Shards that the newest job gave up."""

    @property
    def seconds_left(self) -> float | None:
        """Return how long the rest takes at this speed; None where that is not known, or nobody is at work."""
        left = self.planned_clips - self.clips
        return left / self.clips_per_second if left and self.is_at_work and self.clips_per_second else None

    @property
    def is_at_work(self) -> bool:
        return not all(holder.is_gone for holder in self.holders)


class CacheWatch:
    """Looks at a cache again and again, and reads each time what is new."""

    def __init__(self, cache: str) -> None:
        """Begin with the plan. Raises MissingError if there is no cache."""
        read_recipe(cache)
        self.uri = cache
        self._lines = JobLines(storage.join(cache, "jobs"))
        self._sizes = unit_sizes(cache)
        self._rejects: dict[int, Counter[str]] = {}

    def look(self, now: float) -> CacheLook:
        """Return how the cache stands; `now` is the time in seconds since 1970."""
        if count_units(self.uri) != len(self._sizes[0]):
            self._sizes = unit_sizes(self.uri)
        clips_U, seconds_U = self._sizes
        done = committed_units(self.uri)
        places = sorted(unit for unit in done if unit < len(clips_U))
        recent, span = self._lines.read(now), self._lines.span(now)
        return CacheLook(
            holders=storage.held_by(self.uri),
            shards=len(done),
            planned_shards=len(clips_U),
            clips=int(clips_U[places].sum()),
            planned_clips=int(clips_U.sum()),
            hours=float(seconds_U[places].sum()) / 3600,
            planned_hours=float(seconds_U.sum()) / 3600,
            rejects=self._rejects_of(done),
            real_time=sum(line["audio_seconds"] for line in recent) / span,
            clips_per_second=sum(line["clips"] + line["rejects"] for line in recent) / span,
            recent_seconds=span,
            newest=self._lines.newest,
            failed=self._lines.failed,
        )

    def _rejects_of(self, done: frozenset[int]) -> dict[str, int]:
        """Return rejects by stage; only those of units that were not committed before are read."""
        with_rejects = unit_files(self.uri, "rejects").keys() & done
        self._rejects = {unit: stages for unit, stages in self._rejects.items() if unit in with_rejects}
        for unit in with_rejects - self._rejects.keys():
            self._rejects[unit] = Counter(read_rejects(self.uri, {unit})["stage"].to_pylist())
        total: Counter[str] = Counter()
        for stages in self._rejects.values():
            total.update(stages)
        return dict(total.most_common())
