"""`salmonn jobs list`, `status`, `logs` and `stop`: the jobs of a cluster."""

import sys
import time
from datetime import UTC, datetime

from ray.dashboard.modules.job.pydantic_models import JobDetails
from rich.table import Table

from cluster.apart import call_in_thread
from cluster.jobs.follow import end_of, follow, is_over
from cluster.jobs.preflight import PREFIX
from cluster.jobs.server import JobServer
from pipelines.errors import JobIncompleteError, shorten
from pipelines.interface.terminal import print_table
from pipelines.operations.config import JobConfig, JobLogsConfig, JobsConfig
from pipelines.operations.submit import write_out

STOP_SECONDS = 60.0
STOP_POLL_SECONDS = 0.5
COMMAND_CHARACTERS, STATE_CHARACTERS = 80, 60


def jobs_list(config: JobsConfig) -> None:
    """Print the cluster's jobs, the newest first, without those that only looked at the nodes."""
    ids = [(details, details.submission_id or PREFIX) for details in JobServer(config.address).list_jobs()]
    jobs = [details for details, job in ids if not job.startswith(PREFIX)]
    table = Table("job", "state", "started", "seconds", "command", box=None, pad_edge=False, header_style="bold")
    for details in sorted(jobs, key=lambda details: details.start_time or 0, reverse=True):
        command = details.entrypoint.removeprefix("exec ")
        table.add_row(
            details.submission_id,
            shorten(_state(details), STATE_CHARACTERS),
            _started(details),
            f"{_seconds(details):.0f}",
            shorten(command, COMMAND_CHARACTERS) if sys.stdout.isatty() else command,
        )
    print_table(table)


def jobs_status(config: JobConfig) -> None:
    """Print what the cluster knows about one job."""
    details = JobServer(config.address).need(config.job)
    print(f"{config.job}: {_state(details)}, started {_started(details)}, {_seconds(details):.0f} s")
    print(details.entrypoint.removeprefix("exec "))
    if details.message and not is_over(details):
        print(details.message)


def jobs_logs(config: JobLogsConfig) -> None:
    """Print a job's log as far as it goes, or until the job's end.

    Raises:
        SystemExit: With the job's exit code, if it was followed and that is not 0.
    """
    server = JobServer(config.address)
    server.need(config.job)
    if not config.follow:
        print(server.get_job_logs(config.job), end="")
        return
    end = call_in_thread(lambda: follow(server, config.job, write=write_out, silence_seconds=config.silence_seconds))
    print(f"{end.job} {end.reason}", file=sys.stderr)
    if end.exit_code:
        raise SystemExit(end.exit_code)


def jobs_stop(config: JobConfig) -> None:
    """Stop a job and wait until it is over.

    Raises:
        JobIncompleteError: If it is not over in time.
    """
    server = JobServer(config.address)
    details = server.need(config.job)
    if is_over(details):
        print(f"{config.job} is over: {_state(details)}")
        return
    server.stop_job(config.job)
    deadline = time.monotonic() + STOP_SECONDS
    while not is_over(details := server.need(config.job)):
        if time.monotonic() > deadline:
            raise JobIncompleteError(f"{config.job} was told to stop and still runs after {STOP_SECONDS:g} s")
        time.sleep(STOP_POLL_SECONDS)
    print(f"{config.job} is over: {_state(details)}")


def _state(details: JobDetails) -> str:
    if not is_over(details):
        return str(details.status.value).lower()
    return end_of(details).reason


def _started(details: JobDetails) -> str:
    if not details.start_time:
        return "not yet"
    return datetime.fromtimestamp(details.start_time / 1000, UTC).isoformat(timespec="seconds")


def _seconds(details: JobDetails) -> float:
    if not details.start_time:
        return 0.0
    return (details.end_time or time.time() * 1000) / 1000 - details.start_time / 1000
