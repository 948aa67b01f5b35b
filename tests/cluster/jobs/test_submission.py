"""How jobs end, seen from elsewhere. Covers cluster.jobs.follow, cluster.jobs.server."""

import json
import socket
import subprocess
import sys
from typing import Any

import pytest

from cluster.errors import ClusterError, UnreachableError
from cluster.jobs.server import JobServer
from tests import ROOT
from tests.ray_head import RayHead

ENDS = """
import json, os, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster.jobs.follow import follow
from cluster.jobs.server import JobServer
from cluster.jobs.submission import Work, may_be_mended, start, tries_of

address, folder = sys.argv[1:]
os.environ["RAY_ADDRESS"] = "127.0.0.1:1"  # Ray's own client would go there
server = JobServer(address)


def run(name, command):
    log = []
    work = Work(name, command, Path(folder))
    job = start(server, work, 1)
    again = start(server, work, 1)
    end = follow(server, job, write=log.append)
    mend = may_be_mended(end)
    return {"again": again, "code": end.exit_code, "reason": end.reason, "mend": mend, "log": "".join(log)}


commands = json.loads(sys.stdin.read())
with ThreadPoolExecutor() as pool:
    ends = dict(zip(commands, pool.map(run, commands, commands.values())))
start(server, Work("well", "true", Path(folder)), 2)
ends["tries"] = sorted(tries_of(server, "well"))
ends["unknown"] = server.find("nobody") is None
print(json.dumps(ends))
"""
COMMANDS = {
    "well": "for word in one two three; do echo $word; sleep 1; done; printf 'the end without a line'",
    "user": "exit 2",
    "incomplete": "echo 2 shards are missing; exit 1",
    "killed": "kill -9 $$",
    "stopped": "kill -TERM $$",
    "missing": "no-such-program",
}


@pytest.fixture(scope="module")
def ends(job_head: RayHead, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    command = [sys.executable, "-c", ENDS, job_head.dashboard, str(tmp_path_factory.mktemp("shipped"))]
    done = subprocess.run(
        command,
        input=json.dumps(COMMANDS),
        env={**job_head.environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.ray
class TestEnds:
    @pytest.mark.parametrize(
        ("job", "code", "mend"),
        [
            ("well", 0, False),
            ("user", 2, False),
            ("incomplete", 1, True),
            ("killed", 137, True),
            ("stopped", 143, False),
            ("missing", 127, False),
        ],
    )
    def test_the_exit_code_is_the_programs_own(self, ends: dict[str, Any], job: str, code: int, mend: bool) -> None:
        assert (ends[job]["code"], ends[job]["mend"]) == (code, mend), ends[job]

    def test_each_line_of_the_log_is_written_once(self, ends: dict[str, Any]) -> None:
        log = ends["well"]["log"]
        assert [log.count(f"\n{word}\n") for word in ("one", "two", "three")] == [1, 1, 1]
        assert log.endswith("the end without a line")

    def test_a_job_that_another_process_has_started_is_found(self, ends: dict[str, Any]) -> None:
        assert all(ends[job]["again"] == job for job in COMMANDS)

    def test_tries_are_numbered(self, ends: dict[str, Any]) -> None:
        assert ends["tries"] == [1, 2]
        assert ends["unknown"]


def reply(text: bytes) -> str:
    """Answer one request with these bytes, and return the server's address."""
    listener = socket.create_server(("127.0.0.1", 0))
    code = (
        "import socket, sys\n"
        "listener = socket.socket(fileno=int(sys.argv[1]))\n"
        "link = listener.accept()[0]\n"
        "link.recv(65536)\n"
        "link.sendall(bytes.fromhex(sys.argv[2]))\n"
    )
    subprocess.Popen([sys.executable, "-c", code, str(listener.fileno()), text.hex()], pass_fds=[listener.fileno()])
    port = listener.getsockname()[1]
    listener.close()
    return f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("text", [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", b"SSH-2.0-OpenSSH\r\n"])
def test_what_is_no_job_server_is_named(text: bytes) -> None:
    with pytest.raises(UnreachableError, match=r"http://127\.0\.0\.1:\d+"):
        JobServer(reply(text))


@pytest.mark.parametrize("address", ["head:8265", "ray://head:10001", "http://", "http://head:8265/jobs", "auto"])
def test_the_address_must_be_the_job_servers(address: str) -> None:
    with pytest.raises(ClusterError, match="must be http://HOST:PORT"):
        JobServer(address)


def test_nothing_there_is_said_at_once() -> None:
    with pytest.raises(UnreachableError, match="cannot be reached: Connection refused"):
        JobServer("http://127.0.0.1:1")
