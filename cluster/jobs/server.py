"""Ray's job server: every request has a time limit, and every error says what to do."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from cluster.connection import token_error
from cluster.errors import ClusterError, UnreachableError

REQUEST_SECONDS = 60.0
OVERRIDES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Ray's client would go to these addresses, whatever it is told."""
TALKATIVE = (
    "ray._private.runtime_env.packaging",
    "ray._private.runtime_env.working_dir",
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
)
"""Loggers of Ray that name each step of an upload, and each folder that is left out."""
NO_AGENT = ("No available agent", "Failed to get head node agent")


class RefusedError(ClusterError):
    """The job server answered a request with an error."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class JobServer(JobSubmissionClient):
    """Ray's client of one cluster's job server.

    Raises:
        ClusterError: If the address is malformed, or the token missing or wrong.
        UnreachableError: If nothing answers at the address, or what answers is no job server.
        RefusedError: If the server answers with an error.
    """

    def __init__(self, address: str) -> None:
        if not re.fullmatch(r"https?://[^/\s]+/?", address):
            raise ClusterError(
                f"address={address}: must be http://HOST:PORT, where PORT is the dashboard's, mostly 8265"
            )
        self.address = address
        for name in TALKATIVE:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            with _without(OVERRIDES):
                super().__init__(address)
        except ClusterError:
            raise
        except AuthenticationError as error:
            raise token_error(address, error) from error
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise UnreachableError(f"{address} does not answer as a Ray job server: {error}") from error

    def find(self, job: str) -> JobDetails | None:
        """Return what the server knows about a job, None if it knows none of this id."""
        try:
            return self.get_job_info(job)
        except RefusedError as error:
            if error.status == 404:
                return None
            raise

    def need(self, job: str) -> JobDetails:
        """Return what the server knows about a job.

        Raises:
            ClusterError: If it knows none of this id.
        """
        details = self.find(job)
        if details is None:
            raise ClusterError(f"{self.address} knows no job {job}; salmonn jobs list shows its jobs")
        return details

    def _do_request(self, method: str, endpoint: str, **settings: Any) -> Any:
        try:
            return super()._do_request(method, endpoint, timeout=REQUEST_SECONDS, **settings)
        except AuthenticationError as error:
            raise token_error(self.address, error) from error
        except OSError as error:
            raise UnreachableError(f"Ray job server {self.address} cannot be reached: {_reason(error)}") from error

    def _raise_error(self, response: Any) -> NoReturn:
        text, status = str(response.text), int(response.status_code)
        if any(words in text for words in NO_AGENT):
            raise RefusedError(
                f"{self.address}: the head has no job agent, so it takes no jobs; most often another process has its "
                "port, 52365: start the head with --dashboard-agent-listen-port=PORT, a free one",
                status,
            )
        last = text.strip().splitlines()[-1] if text.strip() else "no reason given"
        raise RefusedError(f"{self.address} answers {status}: {last}", status)


def _reason(error: OSError) -> str:
    """Return the end of a chain of errors, as `Connection refused`: the others name classes and addresses again."""
    text = str(error)
    named = re.search(r"\[Errno -?\d+\] ([^'\")]+)", text)
    return named[1] if named else text


@contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    """Hide environment variables while the block runs."""
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
