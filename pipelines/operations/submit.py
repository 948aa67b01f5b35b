"""`salmonn submit`: a verb as a job of a cluster, started once, followed to its end, and its exit code."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.apart import call_in_thread
from cluster.errors import UnreachableError
from cluster.jobs.follow import JobEnd, end_of, follow, is_over
from cluster.jobs.preflight import ask_cluster, require_good
from cluster.jobs.server import JobServer
from cluster.jobs.shipped import MIB, require_small
from cluster.jobs.submission import Work, may_be_mended, start, tries_of
from pipelines.operations.config import SubmitConfig
from pipelines.operations.work import command_of, name_of, own_config, verb_of, wanted_of, words_of


def submit(config: SubmitConfig) -> None:
    """Run a verb on a cluster; the same command finds the same job again, while it runs and after.

    Raises:
        SystemExit: With the verb's own exit code, if that is not 0.
        ClusterError: If the cluster cannot be reached, refuses the job, or is not ready for it.
    """
    folder = Path(config.folder).resolve()
    verb, words = verb_of(config).name, words_of(own_config(config))
    work = Work(name_of(verb, words), command_of(verb, words), folder)
    server = JobServer(config.address)
    tries = tries_of(server, work.name)
    newest = max(tries, default=0)
    if newest and not is_over(tries[newest]):
        job = str(tries[newest].submission_id)
        end = _follow(config, server, job, "runs already; following it")
    elif newest and end_of(tries[newest]).exit_code == 0 and not config.again:
        _say(f"{tries[newest].submission_id} has done this already, and ended well; again=true does it again")
        return
    else:
        _check(config, server, folder)
        newest += 1
        end = _run(config, server, work, newest)
    for left in range(config.retries, 0, -1):
        if not may_be_mended(end):
            break
        newest += 1
        _say(f"{end.job} {end.reason}; trying again, {left - 1} tries are left after this one")
        try:
            end = _run(config, server, work, newest)
        except UnreachableError as error:  # the job has begun, so its end counts and not the head's silence
            _say(str(error))
            break
    _finish(end)


def _check(config: SubmitConfig, server: JobServer, folder: Path) -> None:
    """Ask the cluster what speaks against the job, a line for each answer."""
    nbytes = require_small(folder)
    _say(f"folder: {nbytes / MIB:.1f} MiB of {folder} are sent")
    wanted = wanted_of(config)
    if not wanted.checks:
        return
    answers = ask_cluster(server, wanted, folder)
    for one in answers:
        _say(str(one))
    require_good(answers)


def _run(config: SubmitConfig, server: JobServer, work: Work, number: int) -> JobEnd:
    job = start(server, work, number)
    return _follow(config, server, job, f"started: {work.entrypoint.removeprefix('exec ')}")


def _follow(config: SubmitConfig, server: JobServer, job: str, note: str) -> JobEnd:
    with _detached(config, server, job):
        _say(f"{job} {note}")
        # An interrupt that comes while a library's finaliser runs is lost, so none runs in this thread.
        return call_in_thread(lambda: follow(server, job, write=write_out, silence_seconds=config.silence_seconds))


@contextmanager
def _detached(config: SubmitConfig, server: JobServer, job: str) -> Iterator[None]:
    """Stop the job at an interrupt if the user wants that, otherwise say how it is followed and stopped."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if config.stop_on_interrupt:
            server.stop_job(job)
            _say(f"{job} is being stopped")
        else:
            at = f"address={config.address} job={job}"
            _say(f"{job} goes on; salmonn jobs logs {at} follow=true follows it, salmonn jobs stop {at} stops it")
        raise


def write_out(text: str) -> None:
    """Write a part of a job's log at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _finish(end: JobEnd) -> None:
    _say(f"{end.job} {end.reason}" if end.exit_code else f"{end.job}: all done")
    if end.exit_code:
        raise SystemExit(end.exit_code)


def _say(text: str) -> None:
    print(f"submit: {text}", file=sys.stderr)
