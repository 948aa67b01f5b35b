"""Jobs under stable names: the same work is started once, found again while it runs, and numbered at each retry."""

from dataclasses import dataclass
from pathlib import Path

from ray.dashboard.modules.job.pydantic_models import JobDetails

from cluster.errors import ClusterError
from cluster.jobs.follow import JobEnd
from cluster.jobs.server import JobServer

MENDABLE_CODES = (1, 137)
"""Exit codes after which the same work, tried again, may end better: incomplete, and ended by SIGKILL, as the kernel
does where memory runs out."""


@dataclass(frozen=True)
class Work:
    """What a job does and takes along."""

    name: str
    """Its id at the first try; `name-2` and so on at others."""
    entrypoint: str
    """Shell command, which the head runs in its copy of the folder."""
    folder: Path
    """Shipped with the job."""


def tries_of(server: JobServer, name: str) -> dict[int, JobDetails]:
    """Return the jobs that have tried this work on the cluster, by the number of the try."""
    tries = {}
    for details in server.list_jobs():
        base, dash, number = str(details.submission_id).rpartition("-")
        if details.submission_id == name:
            tries[1] = details
        elif dash and base == name and number.isdecimal():
            tries[int(number)] = details
    return tries


def start(server: JobServer, work: Work, number: int) -> str:
    """Start one try of the work and return its id; where another process has just started the same try, that one's."""
    job = work.name if number == 1 else f"{work.name}-{number}"
    try:
        return str(
            server.submit_job(
                entrypoint=work.entrypoint,
                submission_id=job,
                runtime_env={"working_dir": str(work.folder)},
            )
        )
    except ClusterError:
        if server.find(job) is None:
            raise
        return job


def may_be_mended(end: JobEnd) -> bool:
    """Say whether the same work, tried again, can end better: not after a user's mistake, a bug or a stop."""
    return end.is_lost or end.exit_code in MENDABLE_CODES
