"""The lines of the newest of a folder's jobs: those that came of late, and when the last one came."""

from collections import deque
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from pipelines import storage

RECENT_SECONDS = 600.0
"""Past over which a speed is told."""
JOB_NAME = "%Y%m%dT%H%M%S.%fZ"
Line = Mapping[str, Any]


def seconds_of(time: str) -> float:
    """Return a time in ISO format as seconds since 1970."""
    return datetime.fromisoformat(time).timestamp()


class JobLines:
    """Follows `<folder>/<time>/*.jsonl` of the newest job."""

    def __init__(self, folder: str) -> None:
        self._folder, self._job = folder, ""
        self._forget()

    def _forget(self) -> None:
        self._tails: dict[str, storage.LineTail] = {}
        self._recent: deque[tuple[float, Line]] = deque()
        self.newest: float | None = None
        """[seconds since 1970] When the last line was written; None where there is none."""
        self.failed = 0
        """Units that were given up."""

    def read(self, now: float) -> list[Line]:
        """Return the lines of units that were done of late, `now` in seconds since 1970."""
        job = max(storage.list_folders(self._folder), default="")
        if job != self._job:
            self._forget()
            self._job = job
        for line in self._come() if job else ():
            self.newest = seconds_of(line["ended"])
            if "error" in line:
                self.failed += 1
            else:
                self._recent.append((self.newest, line))
        while self._recent and self._recent[0][0] < now - RECENT_SECONDS:
            self._recent.popleft()
        return [line for _, line in self._recent]

    def span(self, now: float) -> float:
        """Return the seconds that what came of late took: a job may be younger than `RECENT_SECONDS`."""
        if not self._job:
            return RECENT_SECONDS
        began = datetime.strptime(self._job, JOB_NAME).replace(tzinfo=UTC).timestamp()
        return min(max(now - began, 1.0), RECENT_SECONDS)

    def _come(self) -> Iterator[Line]:
        """Yield what has come since the last call: the newest file that is known may grow, those before it do not."""
        folder = storage.join(self._folder, self._job)
        newest = max(self._tails, default="")
        for name in storage.list_names(folder, ".jsonl"):
            if name >= newest:
                tail = self._tails.setdefault(name, storage.LineTail(storage.join(folder, name)))
                yield from tail.read()
