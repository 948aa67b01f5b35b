import pytest

from pipelines.errors import JobIncompleteError
from pipelines.operations import jobs
from pipelines.operations.config import JobConfig


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
