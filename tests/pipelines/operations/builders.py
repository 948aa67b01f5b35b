"""The command line in processes, talking to one cluster, for the tests of submitted jobs."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from tests import ROOT
from tests.pipelines.builders import prepare_tones
from tests.ray_head import RayHead

SECONDS = 120.0


class Salmonn:
    """The command line in processes that may talk to one cluster."""

    def __init__(self, head: RayHead) -> None:
        self.head = head
        self.address = f"address={head.dashboard}"

    def begin(self, *words: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines", *words],
            env=environment or self.head.environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Started in the background, pytest ignores SIGINT, and so would what it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )

    def call(self, *words: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
        return ended(self.begin(*words, environment=environment))

    def wait_until(self, job: str, word: str) -> None:
        """Wait until the log of a job holds a word."""
        deadline = time.monotonic() + SECONDS
        while word not in self.call("jobs", "logs", self.address, f"job={job}")[1]:
            assert time.monotonic() < deadline, f"{job} never said {word}"


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return a process's exit code and all that it said, but for what takes long on a machine that is busy."""
    said = process.communicate(timeout=SECONDS)[0]
    return process.returncode, without_openings(said)


def without_openings(said: str) -> str:
    """Leave out the lines that tell a pipe what has begun and has no parts to count."""
    return "".join(line for line in said.splitlines(keepends=True) if not line.rstrip().endswith(" …"))


def name_in(process: subprocess.Popen[str]) -> str:
    """Read what a submission says until it names its job."""
    assert process.stdout
    for line in process.stdout:
        if " started: " in line or " runs already" in line:
            return line.split()[1]
    raise AssertionError("no job was started")


def extraction(folder: Path) -> list[str]:
    manifest = prepare_tones(folder, num_clips=6)
    return [f"manifest={manifest}", f"cache={folder}/c", "whisper=tiny", "beats=tiny", "workers=1"]
