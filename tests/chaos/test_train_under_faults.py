"""Training on a cluster of several machines while everything dies at random: examples and losses must be the same.

Kept out of the quick tests: `make chaos` (some ten minutes). CHAOS_TRAIN_FAULTS and CHAOS_SEED change how many and
which.
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
from dataclasses import asdict
from itertools import cycle
from pathlib import Path

import pytest
from ray._raylet import GcsClient

from llm.lora import LoraSettings
from pipelines.optim import OptimConfig
from pipelines.train_loop import TrainConfig, read_metrics
from qformer.aligner import QFormerConfig
from tests.chaos.machines import Machines
from tests.pipelines.test_feature_cache import fill, make_worker, prepare_tones
from tests.pipelines.test_train import train_here

pytestmark = [pytest.mark.chaos, pytest.mark.ray]
ROOT = Path(__file__).parents[2]
NUM_FAULTS = int(os.environ.get("CHAOS_TRAIN_FAULTS", "16"))
SEED = int(os.environ.get("CHAOS_SEED", "0"))
STEPS, CHECKPOINT_EVERY = 150, 5
JOB_SECONDS = 900
RELATIVE_ERROR = 1e-5
WORKERS = (2, 1, 3)
"""Of one job after the other."""
PREEMPTION = 2  # ray's DrainNodeReason


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
        valid_every=50,
        qformer=QFormerConfig(hidden_width=32, num_heads=2, ffn_width=64),
        lora=LoraSettings(),
        optim=OptimConfig(lr=1e-3, min_lr=1e-4, warmup_lr=1e-4, warmup_steps=20),
    )


class Job:
    """The same run, started again until it ends with 0, each time with another number of workers."""

    def __init__(self, machines: Machines, config: TrainConfig, run: Path, keys: list[str]) -> None:
        self.machines, self.run, self.log = machines, str(run), run.with_suffix(".log")
        self.words = [*_words(asdict(config)), f"run={run}", f"ray.address={machines.cluster.address}", *keys]
        self.rng, self.workers = random.Random(SEED), cycle(WORKERS)
        self.tally: Counter[str] = Counter()
        self.ends: Counter[int] = Counter()

    def train(self, faults: int) -> None:
        while self._run(faults) != 0:
            pass
        print(f"{dict(self.tally)}, ends {dict(self.ends)}, {self.tally.total()} faults", flush=True)

    def _run(self, faults: int) -> int:
        workers = next(self.workers)
        command = [sys.executable, "-m", "pipelines", "train", *self.words, f"workers={workers}"]
        with self.log.open("ab") as log:
            self.job = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
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
        lines = read_metrics(self.run)
        return lines[-1]["step"] if lines else 0

    def _inject(self, workers: int) -> None:
        kind = self.rng.choice(["worker", "worker", "machine", "job", "notice"])
        if kind == "worker":
            pids = self.machines.pids("RayTrainWorker")
            assert len(pids) == workers, pids
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
        client.drain_node(node.node_id, PREEMPTION, "spot", int(1000 * (time.time() + 6)))
        time.sleep(6)
        self.machines.cluster.remove_node(node, allow_graceful=False)
        self.machines.nodes.remove(node)
        self.machines.nodes.append(self.machines._new())


def _words(values: dict, prefix: str = "") -> list[str]:
    found = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _words(value, f"{prefix}{key}.")
        elif f"{prefix}{key}" not in ("run", "workers", "ray.address") and value not in ("", []):
            text = f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)
            found.append(f"{prefix}{key}={text}")
    return found


def test_examples_and_losses_are_those_of_an_unbroken_run(machines, config, tmp_path):
    train_here(config)
    job = Job(machines, config, tmp_path / "run", [])
    job.train(NUM_FAULTS)
    ours, unbroken = read_metrics(job.run), read_metrics(config.run)
    assert [line["step"] for line in ours] == list(range(1, STEPS + 1))
    assert [line["examples_sha256"] for line in ours] == [line["examples_sha256"] for line in unbroken]
    errors = [abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(ours, unbroken, strict=True)]
    valid = [(a["valid_loss"], b["valid_loss"]) for a, b in zip(ours, unbroken, strict=True) if "valid_loss" in b]
    print(
        f"largest relative difference of a step's loss: {max(errors):.1e}, losses {ours[0]['loss']} {ours[-1]['loss']}"
    )
    assert max(errors) <= RELATIVE_ERROR
    assert len(valid) == 3 and all(a == pytest.approx(b, rel=RELATIVE_ERROR) for a, b in valid)
