"""Evaluation on a cluster of several machines while workers, machines and jobs die at random: the same report, byte by
byte, and no answer that was kept is given again.

Kept out of the quick tests: `make chaos`. CHAOS_ANSWER_FAULTS and CHAOS_SEED change how many and which.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests import ROOT
from tests.chaos.questions import prepare_questions
from tests.pipelines.builders import stores_of

pytestmark = [pytest.mark.chaos, pytest.mark.ray]
NUM_FAULTS = int(os.environ.get("CHAOS_ANSWER_FAULTS", "16"))
SEED = int(os.environ.get("CHAOS_SEED", "0"))
CLIPS, QUESTIONS = 24, 12
JOB_SECONDS = 900


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    """The command, all but for the run."""
    folder = tmp_path_factory.mktemp("answers")
    manifest, cache, run = prepare_questions(folder, clips=CLIPS, each=QUESTIONS)
    keys = ["max_new_tokens=24", "batch_examples=2", "check_heard=true", "limits.max_tries=100"]
    return ["evaluate", f"manifest={manifest}", f"cache={cache}", f"run={run}", *keys]


def test_report_is_that_of_an_undisturbed_evaluation(machines, words, tmp_path):
    run = Path(words[3].removeprefix("run="))
    fresh = shutil.copytree(run, tmp_path / "fresh")
    address = f"ray.address={machines.cluster.address}"
    assert job(words, fresh, address, tmp_path / "log").wait() == 0, (tmp_path / "log").read_text()[-3000:]
    expected = report(fresh)
    rng, tally, ends = random.Random(SEED), Counter[str](), Counter[int]()
    for number in range(1000):
        if tally.total() >= NUM_FAULTS:
            break
        disturbed = shutil.copytree(run, tmp_path / f"run-{number}")
        while ends_with(disturbed, words, address, machines, rng, tally, tmp_path / "log") != 0:
            ends[-signal.SIGKILL] += 1
        ends[0] += 1
        assert {name: text.replace(disturbed.name, fresh.name) for name, text in report(disturbed).items()} == expected
        rows = [row for path in store(disturbed).glob("[!.]*.parquet") for row in keys_of(path)]
        print(
            f"run {number}: {dict(tally)}, ends {dict(ends)}, {len(rows)} answers, {len(set(rows))} questions",
            flush=True,
        )
        assert len(set(rows)) == CLIPS * QUESTIONS + QUESTIONS and len(rows) - len(set(rows)) <= tally["job"] * 4


def ends_with(run, words, address, machines, rng, tally, log) -> int:
    """Start the evaluation, disturb it after every few answers, and return how it ended."""
    process = job(words, run, address, log)
    deadline = time.monotonic() + JOB_SECONDS
    while process.poll() is None:
        kept = {path: path.stat().st_mtime_ns for path in units(run)}
        goal = len(kept) + rng.randint(1, 6)
        while process.poll() is None and len(units(run)) < goal:
            time.sleep(0.02)
            assert time.monotonic() < deadline, f"no end in sight: {log.read_text()[-3000:]}"
        assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in kept.items())
        if process.poll() is None and tally.total() < NUM_FAULTS:
            inject(process, machines, rng, tally)
    assert process.returncode in (0, -signal.SIGKILL), log.read_text()[-3000:]
    return process.returncode


def inject(process, machines, rng, tally) -> None:
    kind = rng.choice(["worker", "worker", "machine", "job"])
    if kind == "worker":
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(rng.choice(machines.pids("AnswerActor")), signal.SIGKILL)
    elif kind == "machine":
        machines.lose_one(rng)
    else:
        process.kill()
        process.wait()
    tally[kind] += 1


def job(words, run, address, log) -> subprocess.Popen[bytes]:
    command = [word if not word.startswith("run=") else f"run={run}" for word in words]
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines", *command, address], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
        )


def report(run) -> dict[str, str]:
    folder = run / "evaluation" / "test"
    return {name: (folder / name).read_text() for name in ("report.md", "scores.json")}


def store(run) -> Path:
    (found,) = stores_of(run)
    return found


def units(run) -> list[Path]:
    return list((run / "answers").rglob("[!.]*.parquet"))


def keys_of(path) -> list[tuple[str, str]]:
    table = pq.read_table(path, columns=["clip_id", "question"])
    return list(zip(*(table[name].to_pylist() for name in ("clip_id", "question")), strict=True))
