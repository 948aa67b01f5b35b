"""Training on a cluster of several machines while everything dies at random: examples and losses must be the same.

Kept out of the quick tests: `make chaos` (some forty minutes). CHAOS_TRAIN_FAULTS, CHAOS_TOGETHER and CHAOS_SEED change
how many and which.

Covers cluster.preemption.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import cycle
from pathlib import Path

import pytest
from ray._raylet import GcsClient

from llm.settings import LoraSettings
from pipelines.runs.metrics import read_metrics
from pipelines.training.config import OptimConfig, TrainConfig
from qformer.config import QFormerConfig
from tests import ROOT
from tests.chaos.machines import Machines
from tests.pipelines.builders import fill, make_worker, prepare_tones, train_here

pytestmark = [pytest.mark.chaos, pytest.mark.ray]
NUM_FAULTS = int(os.environ.get("CHAOS_TRAIN_FAULTS", "16"))
NUM_TOGETHER = int(os.environ.get("CHAOS_TOGETHER", "50"))
SEED = int(os.environ.get("CHAOS_SEED", "0"))
STEPS, CHECKPOINT_EVERY = 300, 5
JOB_SECONDS = 900
RELATIVE_ERROR = 1e-5
WORKERS = (2, 1, 3)
"""Of one job after the other."""
PREEMPTION, NOTICE_SECONDS = 2, 3.0  # the first is Ray's DrainNodeReason


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
        machines = Machines(cpus=2)
        yield machines
        machines.cluster.shutdown()


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("corpus")
    manifest = prepare_tones(folder, num_clips=48)
    fill(folder / "c", manifest, make_worker(folder / "c"))
    return TrainConfig(
        manifest=manifest,
        cache=str(folder / "c"),
        run=str(folder / "unbroken"),
        llm="tiny",
        steps=STEPS,
        batch_examples=8,
        micro_batch_examples=2,
        heard_seconds=2.0,
        log_every=1,
        checkpoint_every=CHECKPOINT_EVERY,
        max_failures=100,
        valid_splits=["test"],
        valid_every=100,
        qformer=QFormerConfig(hidden_width=32, num_heads=2, ffn_width=64),
        lora=LoraSettings(),
        optim=OptimConfig(lr=1e-3, min_lr=1e-4, warmup_lr=1e-4, warmup_steps=20),
    )


class Chaos:
    """Trains run after run, starting each again until it ends with 0, every time with another number of workers."""

    def __init__(self, machines: Machines, config: TrainConfig, folder: Path) -> None:
        self.machines, self.config, self.folder, self.log = machines, config, folder, folder / "log"
        self.rng, self.workers = random.Random(SEED), cycle(WORKERS)
        self.tally: Counter[str] = Counter()
        self.ends: Counter[int] = Counter()

    def run(self, faults: int) -> None:
        """Go on until so many faults were injected and the last run is complete; compare each with the unbroken one."""
        runs = 0
        while self.tally.total() < faults:
            self.run_uri = str(self.folder / f"run-{runs}")
            while self._run_job(faults) != 0:
                pass
            compare(self.run_uri, self.config.run)
            runs += 1
            print(f"run {runs}: {dict(self.tally)}, ends {dict(self.ends)}", flush=True)

    def _run_job(self, faults: int) -> int:
        workers = next(self.workers)
        self.job = start_job(self.machines, self.config, self.run_uri, self.log, f"workers={workers}")
        deadline = time.monotonic() + JOB_SECONDS
        while self.job.poll() is None:
            goal = self._step() + self.rng.randint(1, 12)
            while self.job.poll() is None and self._step() < goal:
                time.sleep(0.02)
                assert time.monotonic() < deadline, f"no end in sight: {self.log.read_text()[-3000:]}"
            if self.job.poll() is None and self.tally.total() < faults:
                self._inject(workers)
        self.ends[self.job.returncode] += 1
        assert self.job.returncode in (0, -signal.SIGKILL), self.log.read_text()[-3000:]
        return self.job.returncode

    def _step(self) -> int:
        lines = read_metrics(self.run_uri)
        return lines[-1]["step"] if lines else 0

    def _inject(self, workers: int) -> None:
        kind = self.rng.choice(["worker", "worker", "machine", "job", "notice"])
        if kind == "worker":
            pids = self.machines.pids("RayTrainWorker")
            assert 0 < len(pids) <= workers, pids
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.rng.choice(pids), signal.SIGKILL)
        elif kind == "machine":
            self.machines.lose_one(self.rng)
        elif kind == "job":
            self.job.send_signal(signal.SIGKILL)
        else:
            self._announce_loss()
        self.tally[kind] += 1

    def _announce_loss(self) -> None:
        """Tell Ray that a machine goes in some seconds, and let it go."""
        node = self.rng.choice(self.machines.nodes)
        client = GcsClient(address=self.machines.cluster.address)
        client.drain_node(node.node_id, PREEMPTION, "spot", int(1000 * (time.time() + NOTICE_SECONDS)))
        time.sleep(NOTICE_SECONDS)
        self.machines.lose(node)
        self.machines.start_one()


def start_job(machines: Machines, config: TrainConfig, run: str, log: Path, *keys: str) -> subprocess.Popen[bytes]:
    words = [*_words(asdict(config)), f"run={run}", f"ray.address={machines.cluster.address}", *keys]
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines", "train", *words], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
        )


def _words(values: dict, prefix: str = "") -> list[str]:
    found = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _words(value, f"{prefix}{key}.")
        elif f"{prefix}{key}" not in ("run", "workers", "ray.address") and value not in ("", []):
            text = f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)
            found.append(f"{prefix}{key}={text}")
    return found


def compare(run: str, unbroken: str) -> None:
    """Check that a run saw the same examples at each step and had the same losses."""
    ours, theirs = read_metrics(run), read_metrics(unbroken)
    assert [line["step"] for line in ours] == list(range(1, STEPS + 1))
    assert [line["examples_sha256"] for line in ours] == [line["examples_sha256"] for line in theirs]
    errors = [abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(ours, theirs, strict=True)]
    valid = [(a["valid_loss"], b["valid_loss"]) for a, b in zip(ours, theirs, strict=True) if "valid_loss" in b]
    print(f"largest relative difference of a step's loss: {max(errors):.1e} ({ours[0]['loss']} to {ours[-1]['loss']})")
    assert max(errors) <= RELATIVE_ERROR
    assert len(valid) == 3 and all(a == pytest.approx(b, rel=RELATIVE_ERROR) for a, b in valid)


@pytest.fixture(scope="module")
def unbroken(config) -> TrainConfig:
    train_here(config)
    return config


def test_examples_and_losses_are_those_of_an_unbroken_run(machines, unbroken, tmp_path):
    Chaos(machines, unbroken, tmp_path).run(NUM_FAULTS)


def test_job_that_is_killed_goes_on_with_one_and_with_three_workers(machines, unbroken, tmp_path):
    """From two; with three a worker is killed as well."""
    run, log = str(tmp_path / "run"), tmp_path / "log"
    for place, workers in enumerate(WORKERS, 1):
        job = start_job(machines, unbroken, run, log, f"workers={workers}")
        while job.poll() is None and len(read_metrics(run)) < place * STEPS // 4:
            time.sleep(0.05)
        assert job.poll() is None, log.read_text()[-3000:]
        pids = machines.pids("RayTrainWorker")
        assert len(pids) == workers
        if workers == WORKERS[-1]:
            os.kill(pids[0], signal.SIGKILL)
        else:
            job.kill()
        assert job.wait() == (0 if workers == WORKERS[-1] else -signal.SIGKILL), log.read_text()[-3000:]
    compare(run, unbroken.run)


def test_fewer_workers_go_on_when_a_machine_is_lost_and_more_when_it_comes_back(machines, config, tmp_path):
    """Four workers on two machines, two on what is left, four again; Ray looks for more once a minute."""
    level = replace(config, optim=OptimConfig(lr=1e-3, min_lr=1e-3, warmup_steps=0), valid_every=0, valid_splits=[])
    train_here(replace(level, run=str(tmp_path / "unbroken"), steps=60))
    run, log, counts = str(tmp_path / "run"), tmp_path / "log", []
    job = start_job(machines, replace(level, steps=100_000), run, log, "workers=4", "min_workers=1")

    def wait_for(workers: int) -> None:
        """Wait until so many have done some steps."""
        deadline, before = time.monotonic() + JOB_SECONDS, None
        while before is None or len(read_metrics(run)) < before + 12:
            assert job.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            if len(machines.pids("RayTrainWorker")) != workers:
                before = None
            elif before is None:
                before = len(read_metrics(run))
            time.sleep(0.2)
        counts.append((workers, len(read_metrics(run))))

    try:
        wait_for(4)
        machines.lose(machines.nodes[-1])
        wait_for(2)
        machines.start_one()
        wait_for(4)
    finally:
        job.kill()
        job.wait()
    print(f"(workers, steps done): {counts}")
    ours, theirs = (
        [(line["examples_sha256"], line["loss"]) for line in read_metrics(folder)]
        for folder in (run, str(tmp_path / "unbroken"))
    )
    both = min(len(ours), len(theirs))
    assert both >= 36 and ours[:both] == theirs[:both]


def test_jobs_that_start_together_train_a_run_once(machines, config, tmp_path):
    short = replace(config, steps=4, checkpoint_every=2, valid_every=0, valid_splits=[], run=str(tmp_path / "one"))
    train_here(short)
    rng, ends = random.Random(SEED), Counter[int]()
    for attempt in range(NUM_TOGETHER):
        run = str(tmp_path / f"run-{attempt}")
        logs = [tmp_path / f"log-{attempt}-{number}" for number in range(rng.choice((2, 3)))]
        jobs = []
        for log in logs:
            jobs.append(start_job(machines, short, run, log, "workers=1"))
            time.sleep(rng.choice((0.0, 0.0, 0.05, 0.5)))
        codes = [job.wait(JOB_SECONDS) for job in jobs]
        said = [log.read_text() for log in logs]
        assert 0 in codes and set(codes) <= {0, 2}, said
        for code, text in zip(codes, said, strict=True):
            assert ("another job is at work there" in text) == (code == 2), text
        assert sum("4 steps, loss" in text for text in said) == 1, said
        assert [line["loss"] for line in read_metrics(run)] == [line["loss"] for line in read_metrics(short.run)]
        assert len(list((Path(run) / "ray").iterdir())) == 1  # one launch
        ends.update(codes)
    print(f"{NUM_TOGETHER} times two or three jobs at once: ends {dict(ends)}", flush=True)
