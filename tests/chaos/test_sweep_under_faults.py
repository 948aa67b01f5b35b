"""A sweep on a cluster of several machines while the processes of its trials, machines and jobs die at random: every
trial is, bit for bit, the one of an undisturbed sweep, and the table is the same.

Kept out of the quick tests: `make chaos`. CHAOS_SWEEP_FAULTS and CHAOS_SEED change how many and which.
"""

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from pipelines.runs.folder import complete_steps
from pipelines.runs.metrics import read_metrics
from tests import ROOT
from tests.pipelines.builders import fill, make_worker, prepare_tones

pytestmark = [pytest.mark.chaos, pytest.mark.ray]
NUM_FAULTS = int(os.environ.get("CHAOS_SWEEP_FAULTS", "16"))
SEED = int(os.environ.get("CHAOS_SEED", "0"))
TRIALS, STEPS = 8, 40
JOB_SECONDS = 900
KEYS = [
    *("llm=tiny", "splits=[train]", "valid_splits=[test]", "valid_every=10", f"steps={STEPS}", "checkpoint_every=5"),
    *("batch_examples=4", "micro_batch_examples=2", "log_every=1", "heard_seconds=2", "threads=1", "max_failures=1000"),
    *("qformer.hidden_width=32", "qformer.num_heads=2", "qformer.ffn_width=64", "optim.warmup_steps=1"),
    *(f"grid.seed=[{','.join(map(str, range(TRIALS)))}]", "trials_per_process=3"),
]


def test_trials_are_those_of_an_undisturbed_sweep(machines, tmp_path):
    manifest = prepare_tones(tmp_path, num_clips=16)
    fill(tmp_path / "c", manifest, make_worker(tmp_path / "c"))
    words = ["sweep", f"manifest={manifest}", f"cache={tmp_path / 'c'}", *KEYS]
    words.append(f"ray.address={machines.cluster.address}")
    log, rng, tally = tmp_path / "log", random.Random(SEED), Counter[str]()
    assert job(words, tmp_path / "fresh", log).wait() == 0, log.read_text()[-3000:]
    expected = content(tmp_path / "fresh")
    for number in range(1000):
        if tally.total() >= NUM_FAULTS:
            break
        while ends_with(tmp_path / f"sweep-{number}", words, machines, rng, tally, log) != 0:
            pass
        assert content(tmp_path / f"sweep-{number}") == expected
        print(f"sweep {number}: {dict(tally)}", flush=True)


def job(words, sweep, log) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pipelines", *words, f"sweep={sweep}"]
    with log.open("ab") as file:
        return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)


def content(sweep) -> dict[str, object]:
    """What a sweep came to but for times and paths: the table, and each trial's losses and last weights."""
    found: dict[str, object] = {}
    for row in json.loads((sweep / "sweep.json").read_text())["trials"]:
        run, name = Path(row["run"]), str(row["number"])
        found[f"row {name}"] = (row["score"], row["best_step"], row["step"], row["ending"])
        found[f"losses {name}"] = [
            (line["step"], line["loss"], line.get("valid_loss")) for line in read_metrics(str(run))
        ]
        for path in sorted((run / "checkpoints" / f"{STEPS:06d}").rglob("*.safetensors")):
            found[f"{path.name} {name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(found) > 3 * TRIALS
    return found


def ends_with(sweep, words, machines, rng, tally, log) -> int:
    """Start the sweep, disturb it after every few checkpoints, and return how it ended."""
    process = job(words, sweep, log)
    deadline = time.monotonic() + JOB_SECONDS
    while process.poll() is None:
        goal = checkpoints(sweep) + rng.randint(1, 6)
        while process.poll() is None and checkpoints(sweep) < goal:
            time.sleep(0.02)
            assert time.monotonic() < deadline, f"no end in sight: {log.read_text()[-3000:]}"
        if process.poll() is None and tally.total() < NUM_FAULTS:
            inject(process, machines, rng, tally)
    assert process.returncode in (0, -signal.SIGKILL), log.read_text()[-3000:]
    return process.returncode


def checkpoints(sweep) -> int:
    """How far all trials are together, in checkpoints."""
    steps = [complete_steps(str(trial))[-1:] for trial in sweep.glob("trials/*")]
    return sum(step // 5 for found in steps for step in found)


def inject(process, machines, rng, tally) -> None:
    kind = rng.choice(["process", "process", "process", "machine", "job"])
    if kind == "process":
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(rng.choice(machines.pids("TrialProcess")), signal.SIGKILL)
    elif kind == "machine":
        machines.lose_one(rng)
    else:
        process.kill()
        process.wait()
    tally[kind] += 1
