"""A real `ray start --head` with token authentication, and jobs submitted to it from a shell's point of view."""

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

RAY = str(Path(sys.executable).with_name("ray"))
CLIENT_PORTS = range(10_002, 20_000)  # where Ray puts its workers, so no port of ours may be
START_SECONDS = 120.0


@dataclass(frozen=True)
class JobOutcome:
    """How `ray job submit` ended."""

    exit_code: int
    """Of the command itself: 0, or 1 whatever the job's own was."""
    logs: str
    """All that the command printed, the job's output among it."""

    @property
    def job_exit_code(self) -> int | None:
        """The exit code of the job's own program; None where it did not get to run."""
        named = re.search(r"entrypoint command failed with exit code (\d+)", self.logs)
        if named:
            return int(named[1])
        return 0 if self.exit_code == 0 else None


@dataclass(frozen=True)
class RayHead:
    address: str
    """[host:port] For `connect` and RAY_ADDRESS."""
    dashboard: str
    """[URL] For `ray job submit`."""
    token_path: Path

    @property
    def environment(self) -> dict[str, str]:
        """Environment of a process that may talk to this cluster, and to no other."""
        return ray_environment({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_path)})

    def submit(
        self,
        entrypoint: Sequence[str],
        working_dir: Path,
        *,
        environment: Mapping[str, str] | None = None,
        timeout_seconds: float = 300.0,
    ) -> JobOutcome:
        """Run `ray job submit` and wait for the job's end; `environment` replaces the one that holds the token."""
        command = [RAY, "job", "submit", "--address", self.dashboard, "--working-dir", str(working_dir), "--"]
        done = subprocess.run(
            [*command, *entrypoint],
            env=dict(self.environment if environment is None else environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
        return JobOutcome(done.returncode, done.stdout)


def ray_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment, this interpreter first in PATH, with these settings for all of Ray's."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**inherited, "PATH": path, "RAY_USAGE_STATS_ENABLED": "0", "RAY_COLOR_PREFIX": "0", **settings}


@contextlib.contextmanager
def ray_head(
    *, num_cpus: int = 2, object_store_mib: int = 128, ports: Sequence[int] = (), token: str = ""
) -> Iterator[RayHead]:
    """Run a head node with a job server on free ports; stop it, and nothing else, at the end.

    Four `ports` (Ray's, the dashboard's, the client's, the job agent's) and a `token` make it seem another head again.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: sockets have long names below it
    token_path = folder / "token"
    token_path.touch(mode=0o600)
    token_path.write_text(token or secrets.token_hex(32))
    port, dashboard_port, client_port, agent_port = ports or free_ports(4)
    head = RayHead(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard_port}", token_path)
    options = {
        "node-ip-address": "127.0.0.1",
        "port": port,
        "dashboard-host": "127.0.0.1",
        "dashboard-port": dashboard_port,
        "ray-client-server-port": client_port,
        "dashboard-agent-listen-port": agent_port,
        "temp-dir": folder / "tmp",
        "num-cpus": num_cpus,
        "object-store-memory": object_store_mib * 1024 * 1024,
    }
    command = [RAY, "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--{name}={value}" for name, value in options.items()]
    process = _start(command, head, folder / "head.log")
    try:
        if not _jobs_server_is_up(head, process, folder / "head.log"):
            _stop(process, folder)
            process = _start(command, head, folder / "head.log")  # on a busy machine Ray gives up after 30 s
            if not _jobs_server_is_up(head, process, folder / "head.log"):
                raise RuntimeError(
                    f"`ray start --head` gave no job server: {(folder / 'head.log').read_text()[-2000:]}"
                )
        yield head
    finally:
        _stop(process, folder)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def ray_worker(
    head: RayHead, *, num_cpus: int = 1, settings: Mapping[str, str] | None = None, below: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Run another node of a head's cluster as processes of this machine, with more settings in its environment.

    The words of `below` are a command that runs the words after it, such as `unshare`.
    """
    (agent_port,) = free_ports(1)
    with tempfile.NamedTemporaryFile(prefix="ray-worker-", suffix=".log") as log:
        process = subprocess.Popen(
            [
                *(*below, RAY, "start", "--block", "--disable-usage-stats", f"--address={head.address}"),
                *("--node-ip-address=127.0.0.1", f"--dashboard-agent-listen-port={agent_port}"),
                *(f"--num-cpus={num_cpus}", f"--object-store-memory={80 * 1024 * 1024}"),
            ],
            env={**head.environment, **(settings or {})},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait_for_start(process, Path(log.name))
            yield process
        finally:
            _kill_tree(process)


def _wait_for_start(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while "Ray runtime started" not in log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"`ray start` gave no node: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.2)


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    """End a node as a machine that loses its power does."""
    with contextlib.suppress(psutil.NoSuchProcess):
        below = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for child in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    process.wait()


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on now."""
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < count:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            if listener.getsockname()[1] not in CLIENT_PORTS:
                ports.append(listener.getsockname()[1])
        return ports


def _start(command: Sequence[str], head: RayHead, log_path: Path) -> subprocess.Popen[bytes]:
    with log_path.open("wb") as log:
        return subprocess.Popen(
            command, env=head.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def _jobs_server_is_up(head: RayHead, process: subprocess.Popen[bytes], log: Path) -> bool:
    """Wait for the job server; return False if the node ends before, or takes too long."""
    token = {"Authorization": f"Bearer {head.token_path.read_text()}"}
    request = urllib.request.Request(f"{head.dashboard}/api/jobs/", headers=token)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(request, timeout=5) as reply:
            if reply.status == 200 and "Ray runtime started" in log.read_text(errors="replace"):
                return True
        time.sleep(0.2)
    return False


def _stop(process: subprocess.Popen[bytes], folder: Path) -> None:
    """End the node: Ray's own way takes 20 s and more, and what it starts is in no group of processes."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=2)
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if bytes(folder) in status.read_bytes():
                os.kill(int(status.parent.name), signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
