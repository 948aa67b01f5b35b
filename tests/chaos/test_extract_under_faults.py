"""Extraction on a cluster of several machines while everything dies at random: the cache must come out the same.

Kept out of the quick tests: `make chaos` (some half an hour). CHAOS_FAULTS, CHAOS_TOGETHER and CHAOS_SEED
change how many and which.
"""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import get_args

import pytest
import torch

from pipelines import storage
from pipelines.cache.index import committed_units, read_rejects
from pipelines.cache.reader import FeatureCache
from pipelines.cache.tools.config import CacheVerifyConfig
from pipelines.cache.tools.verify import cache_verify
from pipelines.manifest.corpora.table import TableConfig, prepare_table
from tests import ROOT
from tests.chaos.disks import digests, full, small_disk
from tests.chaos.machines import Machines
from tests.pipelines.builders import prepare_tones
from tests.s3_server import Fault, s3_server
from tests.toy import write_tone_corpus

pytestmark = [pytest.mark.chaos, pytest.mark.ray]
NUM_FAULTS = int(os.environ.get("CHAOS_FAULTS", "50"))
NUM_TOGETHER = int(os.environ.get("CHAOS_TOGETHER", "50"))
SEED = int(os.environ.get("CHAOS_SEED", "0"))
PATIENCE_SECONDS = 30.0
JOB_SECONDS = 900
NUM_CLIPS = 300
HONEST_ENDS = {0, 1, -signal.SIGKILL}

Injector = Callable[[], None]


def start_job(machines: Machines, manifest: str, cache: str, log: Path, *, workers: int = 2) -> subprocess.Popen[bytes]:
    words = ["whisper=tiny", "beats=tiny", "shard_megabytes=2", f"workers={workers}", "limits.unit_seconds=60"]
    command = [sys.executable, "-m", "pipelines", "extract", f"manifest={manifest}", f"cache={cache}", *words]
    with log.open("ab") as file:
        return subprocess.Popen(
            [*command, f"ray.address={machines.cluster.address}"], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
        )


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
        positions = self.reference.positions(cache.rows()["clip_id"])
        for position in self.rng.sample(range(cache.num_clips), min(20, cache.num_clips)):
            ours, reference = cache.read(position), self.reference.read(int(positions[position]))
            assert all(torch.equal(ours[stream], reference[stream]) for stream in reference)

    def check_end(self) -> None:
        assert digests(self.cache) == digests(self.undisturbed)
        assert FeatureCache(self.cache).rows().equals(self.reference.rows())
        cache_verify(CacheVerifyConfig(cache=self.cache))


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


@pytest.mark.parametrize("store", ["local", "s3"])
def test_jobs_that_start_together_encode_each_clip_once(machines, tmp_path, store):
    manifest = prepare_tones(tmp_path, num_clips=24, damaged=1)
    undisturbed = str(tmp_path / "undisturbed")
    assert start_job(machines, manifest, undisturbed, tmp_path / "log", workers=1).wait() == 0
    rng, ends = random.Random(SEED), Counter[int]()
    with s3_server("bucket") if store == "s3" else contextlib.nullcontext() as server:
        for attempt in range(NUM_TOGETHER):
            cache = server.uri(f"bucket/cache-{attempt}") if server else str(tmp_path / f"cache-{attempt}")
            logs = [tmp_path / f"log-{attempt}-{number}" for number in range(rng.choice((2, 3)))]
            jobs = []
            for log in logs:
                jobs.append(start_job(machines, manifest, cache, log, workers=1))
                time.sleep(rng.choice((0.0, 0.0, 0.05, 0.5)))
            codes = [job.wait(JOB_SECONDS) for job in jobs]
            said = [log.read_text() for log in logs]
            assert 0 in codes and set(codes) <= {0, 2}, said
            for code, text in zip(codes, said, strict=True):
                assert ("another job is at work there" in text) == (code == 2), text
            assert sum("shards written" in text for text in said) == 1, said
            assert digests(cache) == digests(undisturbed)
            cache_verify(CacheVerifyConfig(cache=cache))
            ends.update(codes)
    print(f"{NUM_TOGETHER} times two or three jobs at once, {store}: ends {dict(ends)}", flush=True)


def test_node_that_does_not_see_the_recordings_costs_no_clip(tmp_path):
    """One node asks another store, which has the bucket and no recordings in it."""
    corpus = write_tone_corpus(tmp_path, num_clips=60)
    with s3_server("bucket") as server, s3_server("bucket") as empty, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.gate.port}")
        server.upload(corpus / "audio", "bucket/audio")
        server.upload(corpus / "audio", "bucket/fewer")
        manifests = {name: str(tmp_path / f"manifest-{name}") for name in ("audio", "fewer")}
        for name, manifest in manifests.items():
            root = f"s3://bucket/{name}?region=us-east-1"
            prepare_table(TableConfig(table=str(corpus / "table.jsonl"), audio_root=root, out=manifest))
        storage.delete_file("s3://bucket/fewer/tone-7.wav?region=us-east-1")
        machines = Machines(1)
        try:
            assert start_job(machines, manifests["audio"], str(tmp_path / "whole"), tmp_path / "log").wait() == 0
            machines.start_one(env_vars={"AWS_ENDPOINT_URL": f"http://127.0.0.1:{empty.gate.port}"})
            log = tmp_path / "log-blind"
            assert start_job(machines, manifests["audio"], str(tmp_path / "blind"), log).wait() == 0
            assert digests(str(tmp_path / "blind")) == digests(str(tmp_path / "whole"))
            assert "did not find or could not read recordings of" in log.read_text()
            log = tmp_path / "log-fewer"
            assert start_job(machines, manifests["fewer"], str(tmp_path / "fewer"), log).wait() == 0
            rejects = read_rejects(str(tmp_path / "fewer"), committed_units(str(tmp_path / "fewer"))).to_pylist()
            assert len(rejects) == 1 and "tone-7.wav" in rejects[0]["recording"]
            assert re.search(r"no such file on node \S+, nor on node \S+", rejects[0]["error"])
        finally:
            machines.cluster.shutdown()
