"""Extraction on a cluster of several machines while everything dies at random: the cache must come out the same.

Kept out of the quick tests: `make chaos` (some ten minutes). CHAOS_FAULTS and CHAOS_SEED change how many and which.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from hashlib import sha256
from pathlib import Path
from typing import get_args

import pytest
import torch

from pipelines import storage
from pipelines.cache.index import committed_units
from pipelines.cache.reader import FeatureCache
from pipelines.cache.tools.config import CacheVerifyConfig
from pipelines.cache.tools.verify import cache_verify
from pipelines.manifest.corpora.table import TableConfig, prepare_table
from tests import ROOT
from tests.chaos.machines import Machines
from tests.pipelines.builders import prepare_tones
from tests.s3_server import Fault, s3_server
from tests.toy import write_tone_corpus

pytestmark = [pytest.mark.chaos, pytest.mark.ray]
NUM_FAULTS = int(os.environ.get("CHAOS_FAULTS", "50"))
SEED = int(os.environ.get("CHAOS_SEED", "0"))
PATIENCE_SECONDS = 30.0
JOB_SECONDS = 900
NUM_CLIPS = 300
DISK_MB = 2_000
HONEST_ENDS = {0, 1, -signal.SIGKILL}

Injector = Callable[[], None]


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        machines = Machines()
        yield machines
        machines.cluster.shutdown()


def start_job(machines: Machines, manifest: str, cache: str, log: Path, *, workers: int = 2) -> subprocess.Popen[bytes]:
    words = ["whisper=tiny", "beats=tiny", "shard_megabytes=2", f"workers={workers}", "limits.unit_seconds=60"]
    command = [sys.executable, "-m", "pipelines", "extract", f"manifest={manifest}", f"cache={cache}", *words]
    with log.open("ab") as file:
        return subprocess.Popen(
            [*command, f"ray.address={machines.cluster.address}"], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
        )


def digests(cache: str) -> dict[str, str]:
    """The SHA-256 of every file whose bytes the manifest and the recipe decide."""
    folders = [storage.join(cache, name) for name in ("shards", "index", "rejects", "units")]
    return {
        f"{folder.partition('?')[0].rpartition('/')[2]}/{name}": sha256(
            storage.read_bytes(storage.join(folder, name))
        ).hexdigest()
        for folder in folders
        for name in storage.list_names(folder)
    }


class Chaos:
    """Fills cache after cache, starting the job again until it ends well, while faults come at random moments."""

    def __init__(self, machines: Machines, manifest: str, folder: str, log: Path, seed: int) -> None:
        self.machines, self.manifest, self.folder, self.log = machines, manifest, folder, log
        self.undisturbed = storage.join(folder, "undisturbed")
        assert start_job(machines, manifest, self.undisturbed, log, workers=1).wait() == 0, log.read_text()[-3000:]
        self.reference = FeatureCache(self.undisturbed)
        self.rng = random.Random(seed)
        self.tally: Counter[str] = Counter()
        self.ends: Counter[int] = Counter()
        self.faults: dict[str, Injector] = {
            "SIGKILL of an actor": self._kill_actor,
            "SIGKILL of a raylet": lambda: self.machines.lose_one(self.rng),
            "SIGKILL of the driver": lambda: self.job.send_signal(signal.SIGKILL),
        }

    def during(self, name: str, fault: Callable[[], AbstractContextManager[None]]) -> None:
        """Add a fault that lasts for some seconds."""

        def inject() -> None:
            with fault():
                time.sleep(self.rng.uniform(0.5, 3))

        self.faults[name] = inject

    def _kill_actor(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.rng.choice(self.machines.pids("ExtractActor")), signal.SIGKILL)

    def run(self, faults: int) -> None:
        """Go on until so many faults were injected and the last cache is complete; compare each with undisturbed."""
        caches = 0
        while self.tally.total() < faults:
            self.cache = storage.join(self.folder, f"cache-{caches}")
            while self._run_job(faults) != 0:
                self.check_what_is_there()
            self.check_end()
            caches += 1
            print(f"cache {caches}: {dict(self.tally)}, ends {dict(self.ends)}", flush=True)

    def _run_job(self, faults: int) -> int:
        self.job = start_job(self.machines, self.manifest, self.cache, self.log)
        deadline = time.monotonic() + JOB_SECONDS
        while self.job.poll() is None:
            self._wait_for_progress()
            if self.job.poll() is None and self.tally.total() < faults:
                self._inject()
            assert time.monotonic() < deadline, f"no end in sight: {self.log.read_text()[-3000:]}"
        self.ends[self.job.returncode] += 1
        assert self.job.returncode in HONEST_ENDS, self.log.read_text()[-3000:]
        return self.job.returncode

    def _wait_for_progress(self) -> None:
        """Wait for one more committed unit, or some seconds, then a moment: faults meet work under way."""
        before, end = committed_units(self.cache), time.monotonic() + self.rng.expovariate(1 / PATIENCE_SECONDS)
        while self.job.poll() is None and time.monotonic() < end and committed_units(self.cache) <= before:
            time.sleep(0.2)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.job.wait(self.rng.uniform(0, 1))

    def _inject(self) -> None:
        actors = self.machines.pids("ExtractActor")
        name = self.rng.choice([name for name in self.faults if actors or not name.endswith("actor")])
        self.faults[name]()
        self.tally[name] += 1

    def check_what_is_there(self) -> None:
        """Whatever is committed now can be read, and is what an undisturbed run wrote."""
        if not committed_units(self.cache):
            return
        cache = FeatureCache(self.cache)
        positions = self.reference.positions(cache.index["clip_id"])
        for position in self.rng.sample(range(cache.index.num_rows), min(20, cache.index.num_rows)):
            ours, reference = cache.read(position), self.reference.read(int(positions[position]))
            assert all(torch.equal(ours[stream], reference[stream]) for stream in reference)

    def check_end(self) -> None:
        assert digests(self.cache) == digests(self.undisturbed)
        assert FeatureCache(self.cache).index.equals(self.reference.index)
        cache_verify(CacheVerifyConfig(cache=self.cache))


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a file system of a few hundred megabytes; only root may."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no small disk to fill: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def full(disk: Path) -> Iterator[None]:
    """Let the disk have no byte left."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(65_536))
    try:
        yield
    finally:
        ballast.unlink()


def test_cache_on_a_disk_that_fills_up(machines, tmp_path):
    manifest = prepare_tones(tmp_path, num_clips=NUM_CLIPS, damaged=4)
    with small_disk(tmp_path / "disk") as disk:
        chaos = Chaos(machines, manifest, str(disk), tmp_path / "log", SEED)
        chaos.during("disk full", lambda: full(disk))
        chaos.run(NUM_FAULTS // 2)


def test_audio_and_cache_on_an_object_store_that_fails(machines, tmp_path):
    corpus = write_tone_corpus(tmp_path, num_clips=NUM_CLIPS, damaged=4)
    with s3_server("bucket") as server:
        audio_root, manifest = server.upload(corpus / "audio", "bucket/audio"), server.uri("bucket/manifest")
        prepare_table(TableConfig(table=str(corpus / "table.jsonl"), audio_root=audio_root, out=manifest))
        chaos = Chaos(machines, manifest, server.uri("bucket"), tmp_path / "log", SEED + 1)
        for fault in get_args(Fault):
            chaos.during(f"S3: {fault}", lambda fault=fault: server.gate.failing(fault))
        chaos.run(NUM_FAULTS - NUM_FAULTS // 2)
        print(f"{server.gate.met} connections met a fault")
