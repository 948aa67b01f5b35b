"""Of several jobs at one folder one goes on, whatever the store; a dead job's hold is let go, a living one's is not."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.errors import JobIncompleteError
from pipelines.storage import hold
from pipelines.storage.hold import HeldError
from tests import ROOT
from tests.s3_server import CREDENTIALS, s3_server

JOB = """
import sys, time
from pipelines import storage
from pipelines.storage.hold import HeldError
folder, log, seconds = sys.argv[1:]
try:
    with storage.held(folder):
        with open(log, "a") as file:
            print("in", flush=True, file=file)
            time.sleep(float(seconds))
            print("out", flush=True, file=file)
except HeldError as error:
    sys.exit(str(error))
"""


def start(folder: str, log: Path, seconds: float = 0.5) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", JOB, folder, str(log), str(seconds)]
    return subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def holders(folder: Path) -> list[Path]:
    return sorted(folder.glob("held-by-*.json"))


def test_who_holds_a_folder_is_told_and_where_that_process_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    assert storage.held_by(str(folder)) == [] and not folder.exists()
    with storage.held(str(folder)):
        (holder,) = storage.held_by(str(folder))
        assert str(holder).startswith(f"process {os.getpid()} on ") and ", since 20" in str(holder)
        assert not holder.is_gone
    process = start(str(folder), tmp_path / "log", 60.0)
    deadline = time.monotonic() + 60
    while not storage.held_by(str(folder)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    (holder,) = storage.held_by(str(folder))
    assert holder.is_gone and str(holder).startswith(f"process {process.pid} on ")
    assert str(holder).endswith("(that process is gone)")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RENEW_SECONDS": 0.05, "LEASE_SECONDS": 0.6, "LOOK_SECONDS": 0.05}.items():
        monkeypatch.setattr(hold, name, value)


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "folder")
        return
    for key, value in CREDENTIALS.items():
        monkeypatch.setenv(key, value)
    with s3_server("held") as server:
        yield server.uri("held/folder")


def test_of_jobs_that_start_at_once_one_goes_on_at_a_time(folder, tmp_path):
    for attempt in range(3):
        log = tmp_path / f"log-{attempt}"
        jobs = [start(folder, log) for _ in range(3)]
        ends = [job.communicate()[1] for job in jobs]
        lines = log.read_text().split()
        assert lines == ["in", "out"] * (len(lines) // 2) and lines
        refused = [end for end, job in zip(ends, jobs, strict=True) if job.returncode]
        assert len(refused) == 3 - len(lines) // 2
        assert all("another job is at work there (process " in end for end in refused), "\n".join(refused)


def test_a_hold_ends_with_its_block_and_leaves_nothing(tmp_path):
    with storage.held(str(tmp_path / "new")):
        assert len(holders(tmp_path / "new")) == 1
        with (
            pytest.raises(HeldError, match=rf"process {os.getpid()} on .*, since 20"),
            storage.held(str(tmp_path / "new")),
        ):
            pytest.fail("held twice")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ZeroDivisionError), storage.held(str(tmp_path)):
        _ = 1 / 0
    assert not holders(tmp_path)


def test_the_hold_of_a_killed_job_is_let_go_at_once(tmp_path):
    (tmp_path / "kept").touch()
    job = start(str(tmp_path), tmp_path / "log", 60)
    while not (tmp_path / "log").exists():
        time.sleep(0.02)
    with pytest.raises(HeldError), storage.held(str(tmp_path)):
        pytest.fail("the job lives")
    job.send_signal(signal.SIGKILL)  # not waited for: what is left of it is a zombie
    while job.stderr and job.stderr.read():
        pass
    began = time.monotonic()
    with storage.held(str(tmp_path)):
        assert time.monotonic() - began < 5 and len(holders(tmp_path)) == 1
    job.wait()


def elsewhere(folder: Path) -> Path:
    """Write the settled hold of a job on another machine."""
    other = replace(hold._own_hold(), machine="another boot", host="node7", is_settled=True)
    hold._write(str(folder), other)
    return folder / f"held-by-{other.name}.json"


def test_a_job_of_another_machine_counts_as_dead_once_its_hold_is_not_renewed(tmp_path, quick):
    other = elsewhere(tmp_path)
    began = time.monotonic()
    with storage.held(str(tmp_path)):
        assert time.monotonic() - began >= 0.6
        assert not other.exists()


def test_a_job_of_another_machine_that_renews_its_hold_keeps_it(tmp_path, quick):
    other = elsewhere(tmp_path)
    renewed = {**json.loads(other.read_text()), "renewals": 1}
    timer = threading.Timer(0.3, storage.write_bytes, (str(other), json.dumps(renewed).encode()))
    timer.start()
    with pytest.raises(HeldError, match="node7"), storage.held(str(tmp_path)):
        pytest.fail("taken from a living job")
    assert holders(tmp_path) == [other]


@pytest.fixture(params=["in front", "in the background"])
def started(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let the process handle signals as one that a shell starts so: in the background SIGINT is ignored."""
    in_front = request.param == "in front"
    on_sigint = signal.signal(signal.SIGINT, signal.default_int_handler if in_front else signal.SIG_IGN)
    on_sigterm = signal.signal(signal.SIGTERM, signal.SIG_DFL if in_front else lambda number, _: sys.exit(number))
    yield
    signal.signal(signal.SIGINT, on_sigint)
    signal.signal(signal.SIGTERM, on_sigterm)


def test_a_job_that_was_taken_for_dead_ends_and_says_who_took_over(tmp_path, quick, started):
    with ExitStack() as stack:
        stack.enter_context(pytest.raises(JobIncompleteError, match=r"another took over: process .* on node7"))
        stack.enter_context(storage.held(str(tmp_path)))
        (own,) = holders(tmp_path)
        elsewhere(tmp_path)
        for _ in range(500):
            own.unlink(missing_ok=True)  # again, where a renewal was just being written
            time.sleep(0.02)
        pytest.fail("went on")
    assert [json.loads(path.read_text())["host"] for path in holders(tmp_path)] == ["node7"]


def test_a_hold_is_renewed_through_failures_of_storage(tmp_path, quick, monkeypatch, caplog):
    write, calls = hold.write_bytes, []

    def failing(uri: str, data: bytes) -> None:
        calls.append(uri)
        if len(calls) in (4, 5):
            raise OSError("store is away")
        write(uri, data)

    monkeypatch.setattr(hold, "write_bytes", failing)
    with storage.held(str(tmp_path)):
        while len(calls) < 8:
            time.sleep(0.02)
        (own,) = holders(tmp_path)
        assert json.loads(own.read_text())["renewals"] >= 2
    assert "was not renewed (store is away); trying again" in caplog.text


def test_a_number_that_another_process_has_now_is_no_sign_of_life():
    own = hold._own_hold()
    assert hold._is_alive(own) is True
    assert hold._is_alive(replace(own, started="1")) is False
    assert hold._is_alive(replace(own, machine="")) is None
    assert set(asdict(own)) >= {"command", "host", "process", "since"}
