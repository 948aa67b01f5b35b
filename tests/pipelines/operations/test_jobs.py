import signal
import time
import weakref

import pytest

from cluster.jobs.follow import JobEnd
from pipelines.errors import JobIncompleteError
from pipelines.operations import jobs, submit
from pipelines.operations.config import JobConfig, JobLogsConfig, SubmitExtractConfig


def test_a_job_that_does_not_stop_is_named(monkeypatch):
    class Deaf:
        """A job server whose jobs never end, which no real one can be made to be."""

        def __init__(self, address):
            self.stopped = []

        def need(self, job):
            return job

        def stop_job(self, job):
            self.stopped.append(job)

    monkeypatch.setattr(jobs, "JobServer", Deaf)
    monkeypatch.setattr(jobs, "is_over", lambda details: False)
    monkeypatch.setattr(jobs, "STOP_SECONDS", 0.0)
    with pytest.raises(JobIncompleteError, match="extract-1 was told to stop and still runs after 0 s"):
        jobs.jobs_stop(JobConfig(job="extract-1"))


@pytest.mark.parametrize("module", [jobs, submit])
def test_an_interrupt_while_a_library_tidies_up_is_not_lost(monkeypatch, module):
    class Connection:
        """What a library closes when nobody holds it any more; an exception in there is printed and ignored."""

    class Server:
        def __init__(self, address):
            self.address = address

        def need(self, job):
            return job

    def follow(*_, **__):
        connection = Connection()
        weakref.finalize(connection, lambda: [signal.raise_signal(signal.SIGINT), time.sleep(2.0)])
        del connection
        return JobEnd("extract-1", 0, "done")

    monkeypatch.setattr(jobs, "JobServer", Server)
    monkeypatch.setattr(module, "follow", follow)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where pytest runs in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            if module is jobs:
                jobs.jobs_logs(JobLogsConfig(job="extract-1", follow=True))
            else:
                submit._follow(SubmitExtractConfig(manifest="m", cache="c"), Server(""), "extract-1", "runs")
    finally:
        signal.signal(signal.SIGINT, before)
