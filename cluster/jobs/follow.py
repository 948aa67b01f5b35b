"""Staying with a job until its end, through silences of the head, and the exit code that it ended with."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from ray.dashboard.modules.job.pydantic_models import JobDetails

from cluster.errors import UnreachableError
from cluster.jobs.server import JobServer, RefusedError

STOPPED_CODE = 143
LOST_CODE = 1
POLL_SECONDS = 1.0
LOG_CHARACTERS_PER_SECOND = 1_000_000
"""The job server gives a log whole; a long one is asked for more rarely."""


@dataclass(frozen=True)
class JobEnd:
    job: str
    exit_code: int
    """Of the job's own program; 128 and the signal's number where one ended it, 143 where the job was stopped, 1 where
    nobody knows."""
    reason: str
    """How it ended, in one line."""
    is_lost: bool = False
    """Whether the job ended with its head or its agent, so that its program's end is not known."""


def is_over(details: JobDetails) -> bool:
    return bool(details.status.is_terminal())


def end_of(details: JobDetails) -> JobEnd:
    """Return how a job that is over ended."""
    job, code = str(details.submission_id), details.driver_exit_code
    message = " ".join(str(details.message or "").split())
    if details.status == "SUCCEEDED":
        return JobEnd(job, 0, "done")
    if details.status == "STOPPED":
        return JobEnd(job, STOPPED_CODE, "stopped")
    if code is None:
        return JobEnd(job, LOST_CODE, f"ended without an exit code: {message[:400]}", is_lost=True)
    if code < 0:
        return JobEnd(job, 128 - code, f"was ended by signal {-code}")
    return JobEnd(job, code, f"ended with exit code {code}")


def follow(server: JobServer, job: str, *, write: Callable[[str], None], silence_seconds: float = 60.0) -> JobEnd:
    """Write a job's log as it grows and return how the job ended.

    A job's status decides, not the end of its log: when a head stops, logs end as if their jobs were done. A head that
    does not answer is asked again for `silence_seconds`; one that came back without knowing the job has lost it.
    """
    log = _Log(server, job, write)
    silent_since = 0.0
    while True:
        try:
            details = server.find(job)
            silent_since = 0.0
            if details is None:
                return JobEnd(job, LOST_CODE, "is not known any more: the head was started anew", is_lost=True)
            log.write_new(to_the_end=is_over(details))
            if is_over(details):
                return end_of(details)
        except UnreachableError as error:
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since >= silence_seconds:
                return JobEnd(
                    job,
                    LOST_CODE,
                    f"may have ended with its head: {error}; the same command finds out, and continues",
                    is_lost=True,
                )
        time.sleep(POLL_SECONDS + log.length / LOG_CHARACTERS_PER_SECOND)


class _Log:
    """What was written of a job's log by now."""

    def __init__(self, server: JobServer, job: str, write: Callable[[str], None]) -> None:
        self._server, self._job, self._write = server, job, write
        self.length = 0

    def write_new(self, *, to_the_end: bool) -> None:
        """Write the lines that came since; half a line only at the log's end."""
        text = self._read()[self.length :]
        if not to_the_end:
            text = text[: text.rfind("\n") + 1]
        if text:
            self._write(text)
            self.length += len(text)

    def _read(self) -> str:
        try:
            return str(self._server.get_job_logs(self._job))
        except RefusedError:  # half a character at its end cannot be decoded, or the node that holds it is gone
            return ""
