"""What it costs to begin: processor seconds and memory of each verb's door, of drivers, workers and recoveries.

`python -m benchmarks.startup [OTHER_CHECKOUT] [rounds]` measures this checkout, beside another one where given, each
with its own .venv, in turn; the order changes from round to round. It prints medians and this checkout's share of the
other's. Processor seconds are of the process and the children that it waited for; memory is the highest resident memory
of the process alone. Every command runs once before it is measured, so that all files are in memory.
"""

import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parents[1]
LOOK_SECONDS = 0.05
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
TRAIN_KEYS = ("llm=tiny", "heard_seconds=5", "batch_examples=4", "micro_batch_examples=4", "log_every=1")
STEP_LIMIT_SECONDS = 300.0


@dataclass(frozen=True)
class Cost:
    """Processor seconds, and the highest resident memory in MB; None where it is not measured."""

    seconds: float
    megabytes: float | None = None


@dataclass(frozen=True)
class Build:
    """A checkout that is measured, with its own interpreter."""

    name: str
    folder: Path

    def command(self, *words: str) -> list[str]:
        return [str(self.folder / ".venv/bin/python"), "-m", "pipelines", *words]

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start a verb whose output goes nowhere."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return subprocess.Popen(
            self.command(*words),
            cwd=self.folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def run(self, *words: str, code: int = 0) -> Cost:
        """Run a verb to its end, which must have this exit code."""
        with watched_memory(process := self.start(*words)) as peak:
            _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != code:
            raise SystemExit(f"{self.name}: salmonn {' '.join(words)}: exit code {process.returncode}, not {code}")
        return Cost(used.ru_utime + used.ru_stime, max(peak))


@contextmanager
def watched_memory(process: subprocess.Popen[bytes]) -> Iterator[list[float]]:
    """Yield a list to which the process's own highest memory so far is added every so often."""
    peaks, ended = [0.0], threading.Event()

    def look() -> None:
        while not ended.wait(LOOK_SECONDS / 5):
            with suppress(OSError):
                found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
                peaks.append(int(found[1]) / 1e3 if found else 0.0)  # a process that has ended has no memory

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


def processor_seconds(pid: int) -> float:
    """Return what a running process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def workers_of(driver: int) -> list[int]:
    """Return the processes of Ray Train's workers in the driver's session of processes."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            name = (folder / "cmdline").read_bytes().split(b"\0")[0]
            if name.startswith(b"ray::RayTrainWorker") and os.getsid(int(folder.name)) != os.getsid(0):
                found.append(int(folder.name))
    return sorted(found)


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + STEP_LIMIT_SECONDS
    while not condition():
        if process.poll() is not None or time.monotonic() > limit:
            raise SystemExit("a training ended, or took too long, before it was measured")
        time.sleep(LOOK_SECONDS)


def measure_training(build: Build, data: Path, run: Path) -> dict[str, Cost]:
    """Train, note driver and worker up to the first step, then kill the worker and wait for the next one's step."""
    metrics = run / "metrics.jsonl"
    words = ("train", "tiny", f"manifest={data / 'm'}", f"cache={data / 'c'}", f"run={run}", *TRAIN_KEYS)
    start = time.monotonic()
    process = build.start(*words, "steps=100000", "checkpoint_every=1", "keep_checkpoints=1")
    try:
        with watched_memory(process) as peak:
            wait_for(lambda: count_lines(metrics), process)
        wall = time.monotonic() - start
        (worker,) = workers_of(process.pid)
        costs = {
            "train: from start to first step, wall": Cost(wall),
            "train: worker up to its first step": Cost(processor_seconds(worker)),
            "train: driver": Cost(processor_seconds(process.pid), max(peak)),
        }
        os.kill(worker, signal.SIGKILL)
        lines, killed = count_lines(metrics), time.monotonic()
        wait_for(lambda: [pid for pid in workers_of(process.pid) if pid != worker], process)
        wait_for(lambda: count_lines(metrics) > lines + 1, process)
        costs["train: recovery after SIGKILL of the worker, wall"] = Cost(time.monotonic() - killed)
        return costs
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(2)  # Ray's own processes end when they see that


def make_data(build: Build, folder: Path) -> dict[str, str]:
    """Write a small corpus, and by this build its manifest, cache and run, and what can be asked about it."""
    sys.path.insert(0, str(HERE))
    from tests.toy import write_tone_corpus

    corpus = write_tone_corpus(folder / "corpus", num_clips=12)
    manifest, cache, run = f"manifest={folder / 'm'}", f"cache={folder / 'c'}", f"run={folder / 'runs' / 'r'}"
    build.run(
        "prepare", "table", f"table={corpus / 'table.jsonl'}", f"audio_root={corpus / 'audio'}", f"out={folder / 'm'}"
    )
    build.run("extract", manifest, cache, "whisper=tiny", "beats=tiny")
    build.run("train", "tiny", manifest, cache, run, *TRAIN_KEYS, "steps=4")
    return {"manifest": manifest, "cache": cache, "run": run, "audio": f"audio={corpus / 'audio' / 'tone-3.wav'}"}


def doors(build: Build, keys: Mapping[str, str], folder: Path) -> Iterator[tuple[str, Cost]]:
    """Run every door of a build once."""
    code = "import json; from pipelines.cli import VERBS; print(json.dumps(list(VERBS)))"
    interpreter = [str(build.folder / ".venv/bin/python"), "-c", code]
    verbs = json.loads(subprocess.run(interpreter, cwd=build.folder, check=True, capture_output=True).stdout)
    yield "salmonn --help", build.run("--help")
    for verb in verbs:
        yield f"{verb} --help", build.run(*verb.split(), "--help")
    yield "train, a wrong key", build.run("train", "tiny", "wrong=1", code=2)
    yield "ask, a wrong path", build.run("ask", "run=/nowhere", keys["audio"], "question=?", code=2)
    yield "runs list", build.run("runs", "list", f"runs={folder / 'runs'}")
    yield "cache info", build.run("cache", "info", keys["cache"])
    yield "cache ls", build.run("cache", "ls", keys["cache"])
    yield "manifest info", build.run("manifest", "info", keys["manifest"])
    asked = ("question=What can be heard?", "num_beams=1", "max_new_tokens=4")
    yield "ask, to the answer", build.run("ask", keys["run"], keys["audio"], *asked)


def main(arguments: Sequence[str]) -> None:
    builds = [Build("this", HERE)]
    builds += [Build("other", Path(word).resolve()) for word in arguments if not word.isdecimal()]
    rounds = next((int(word) for word in arguments if word.isdecimal()), 3)
    costs: dict[str, dict[str, list[Cost]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys = make_data(builds[0], folder)
        for build in builds:
            for _ in doors(build, keys, folder):
                pass
        for number in range(rounds):
            for build in builds if number % 2 else builds[::-1]:
                measured = dict(doors(build, keys, folder))
                if number < max(1, rounds // 2):
                    measured |= measure_training(build, folder, folder / f"training-{build.name}-{number}")
                for door, cost in measured.items():
                    costs.setdefault(door, {}).setdefault(build.name, []).append(cost)
    print_table(costs, builds)


def print_table(costs: Mapping[str, Mapping[str, Sequence[Cost]]], builds: Sequence[Build]) -> None:
    print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    names = [build.name for build in builds]
    print(f"\n| | {' | '.join(f'{name}, s | {name}, MB' for name in names)} | s, ratio | MB, ratio |")
    print("|---" * (2 * len(names) + 3) + "|")
    for door, by_build in costs.items():
        medians = {name: _median(by_build.get(name, ())) for name in names}
        cells = [text for name in names for text in _cells(medians[name])]
        ours, theirs = medians[names[0]], medians[names[-1]]
        ratios = [_ratio(ours.seconds, theirs.seconds), _ratio(ours.megabytes, theirs.megabytes)]
        print(f"| {door} | {' | '.join([*cells, *(ratios if len(names) > 1 else ['', ''])])} |")


def _median(costs: Sequence[Cost]) -> Cost:
    if not costs:
        return Cost(float("nan"))
    memories = [cost.megabytes for cost in costs if cost.megabytes is not None]
    return Cost(statistics.median(cost.seconds for cost in costs), statistics.median(memories) if memories else None)


def _cells(cost: Cost) -> tuple[str, str]:
    return f"{cost.seconds:.2f}", "" if cost.megabytes is None else f"{cost.megabytes:.0f}"


def _ratio(ours: float | None, theirs: float | None) -> str:
    return f"{ours / theirs:.2f}" if ours is not None and theirs else ""


if __name__ == "__main__":
    main(sys.argv[1:])
