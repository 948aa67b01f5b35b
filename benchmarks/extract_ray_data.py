"""Extraction beside what one would try first: Ray Data's map_batches, write_webdataset and row-level checkpoints.

`python -m benchmarks.extract_ray_data [rounds]`: the same clips, encoders, batch size and two actors of one CPU each;
tiny encoders, so that what surrounds them weighs most. Undisturbed runs in turn, then each with one actor killed, then
each with the whole job killed half way and started again. Every clip that is encoded appends a byte to a file, which
tells the work that was lost.
"""

import contextlib
import hashlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import soundfile
import torch

from cluster.config import RayConfig
from cluster.connection import connect
from encoders.audio import SAMPLE_RATE_HZ
from encoders.clip_encoder import load_clip_encoder
from encoders.codecs import quantise
from encoders.sound.clips import load_clip
from pipelines.cache.index import committed_units, read_index
from pipelines.extraction import extract as extract_module
from pipelines.extraction.config import ExtractConfig
from pipelines.extraction.extract import extract
from pipelines.extraction.worker import ExtractWorker
from pipelines.manifest.corpora.table import TableConfig, prepare_table
from pipelines.manifest.tables import clip_from_row

NUM_CLIPS = 400
CLIP_SECONDS = (3.0, 12.0)
ACTORS, BATCH_CLIPS, SHARD_MB = 2, 8, 8
ENGINES = ("ours", "ray data")


def write_corpus(folder: Path) -> str:
    """Write clips of noise of different lengths and their manifest."""
    rng = np.random.Generator(np.random.PCG64(0))
    (folder / "audio").mkdir()
    lines = ["path,text"]
    for number in range(NUM_CLIPS):
        samples = 0.1 * rng.standard_normal(int(rng.uniform(*CLIP_SECONDS) * SAMPLE_RATE_HZ))
        soundfile.write(folder / "audio" / f"{number}.flac", samples, SAMPLE_RATE_HZ)
        lines.append(f"audio/{number}.flac,noise")
    (folder / "table.csv").write_text("\n".join(lines))
    prepare_table(TableConfig(table=str(folder / "table.csv"), out=str(folder / "manifest")))
    return str(folder / "manifest")


def count(clips: int) -> None:
    """Note that clips were encoded; appended bytes are not lost when a process dies."""
    with Path(os.environ["ENCODED"]).open("ab", buffering=0) as file:
        file.write(bytes(clips))


class CountingWorker(ExtractWorker):
    def _encode(self, decoded: Any, sampled: Any) -> Any:
        encoded = super()._encode(decoded, sampled)
        count(len(decoded))
        return encoded


class RayDataEncoder:
    """The same encoders behind map_batches."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.encoder = load_clip_encoder(whisper="tiny", beats="tiny")

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        columns = [list(column) for column in batch.values()]
        clips = [clip_from_row(dict(zip(batch, row, strict=True))) for row in zip(*columns, strict=True)]
        encoded = self.encoder.encode([load_clip(clip.located()) for clip in clips], batch_size=BATCH_CLIPS)
        count(len(clips))
        features = [
            {name: quantise(frames, "float16")[""].numpy() for name, frames in clip.items()} for clip in encoded
        ]
        out: dict[str, Any] = {"__key__": [clip.clip_id for clip in clips], "clip_id": [c.clip_id for c in clips]}
        for name in ("speech", "audio"):
            column = np.empty(len(clips), dtype=object)
            column[:] = [clip[name] for clip in features]
            out[f"{name}.npy"] = column
        return out


def run_ours(manifest: str, out: str) -> None:
    setattr(extract_module, "ExtractActor", CountingWorker)  # noqa: B010
    keys: dict[str, Any] = {"whisper": "tiny", "beats": "tiny", "batch_clips": BATCH_CLIPS, "workers": ACTORS}
    extract(ExtractConfig(manifest=manifest, cache=out, shard_megabytes=SHARD_MB, **keys))


def run_ray_data(manifest: str, out: str) -> None:
    from ray.data.checkpoint import CheckpointConfig

    context = ray.data.DataContext.get_current()
    context.checkpoint_config = CheckpointConfig(
        id_column="clip_id", checkpoint_path=f"{out}/checkpoint", delete_checkpoint_on_success=False
    )
    context.target_max_block_size = SHARD_MB * 1_000_000  # a block is a shard, and what a checkpoint holds
    clips = ray.data.read_parquet(f"{manifest}/clips.parquet", override_num_blocks=NUM_CLIPS // 32)
    encoded = clips.map_batches(RayDataEncoder, batch_size=BATCH_CLIPS, concurrency=ACTORS, num_cpus=1)
    encoded.write_webdataset(f"{out}/shards")


@dataclass
class Run:
    """A job in a process of its own, on a Ray cluster of its own that is up before the clock starts."""

    engine: str
    manifest: str
    out: Path

    def __post_init__(self) -> None:
        self.out.mkdir(exist_ok=True)
        self.counter = self.out / "encoded"
        self.counter.touch()

    def start(self) -> None:
        command = [sys.executable, "-m", "benchmarks.extract_ray_data", self.engine, self.manifest, str(self.out)]
        self.ready = self.out / "ready"
        self.ready.unlink(missing_ok=True)
        with (self.out / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, "ENCODED": str(self.counter)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while not self.ready.exists():
            assert self.process.poll() is None, (self.out / "log").read_text()[-2000:]
            time.sleep(0.01)
        self.begun = time.monotonic()

    @property
    def encoded(self) -> int:
        return self.counter.stat().st_size

    def wait_for(self, clips: int) -> None:
        while self.encoded < clips:
            assert self.process.poll() is None, "it ended too early"
            time.sleep(0.01)

    def finish(self) -> float:
        code = self.process.wait()
        seconds = time.monotonic() - self.begun
        assert code == 0, (self.out / "log").read_text()[-3000:]
        return seconds

    def kill_actor(self) -> None:
        listing = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
        titles = ("ray::CountingWorker", "ray::MapWorker", "ray::_MapWorker", "ray::MapBatches")
        pids = [int(line.split()[0]) for line in listing.splitlines() if line.split(None, 1)[1].startswith(titles)]
        os.kill(pids[0], signal.SIGKILL)

    def kill_job(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        time.sleep(3)  # its workers notice

    @property
    def clips_kept(self) -> int:
        """Clips that a start over would not encode again."""
        if self.engine == "ours":
            return sum(read_index(str(self.out), unit).num_rows for unit in committed_units(str(self.out)))
        with contextlib.suppress(FileNotFoundError):
            import pyarrow.parquet as pq

            return int(pq.read_table(self.out / "checkpoint").num_rows)
        return 0

    @property
    def shards(self) -> dict[str, str]:
        files = sorted((self.out / "shards").glob("*.tar"))
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    @property
    def nbytes(self) -> int:
        return sum(file.stat().st_size for file in (self.out / "shards").glob("*.tar"))


def child(engine: str, manifest: str, out: str) -> None:
    connect(RayConfig(address="local", num_cpus=ACTORS + 2, object_store_mib=512))
    (Path(out) / "ready").touch()
    (run_ours if engine == "ours" else run_ray_data)(manifest, out)


def fresh(folder: Path, manifest: str, engine: str) -> Iterator[Run]:
    while True:
        out = Path(tempfile.mkdtemp(dir=folder))
        yield Run(engine, manifest, out)
        shutil.rmtree(out)


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = write_corpus(folder)
        runs = {engine: fresh(folder, manifest, engine) for engine in ENGINES}
        seconds: dict[str, list[float]] = {engine: [] for engine in ENGINES}
        seen: dict[str, list[Run]] = {engine: [] for engine in ENGINES}
        for _ in range(rounds):
            for engine in ENGINES:
                run = next(runs[engine])
                run.start()
                seconds[engine].append(run.finish())
                shards = run.shards
                print(
                    f"{engine}: {seconds[engine][-1]:.1f} s, {len(shards)} shards, {run.nbytes / 1e6:.1f} MB",
                    flush=True,
                )
                seen[engine].append(run)
        medians = {engine: statistics.median(values) for engine, values in seconds.items()}
        print(f"\n{NUM_CLIPS} clips, {ACTORS} actors, ray {ray.__version__}, torch {torch.__version__}")
        for engine in ENGINES:
            print(f"{engine}: median {medians[engine]:.1f} s, {NUM_CLIPS / medians[engine]:.1f} clips/s")
        ratio = statistics.median(b / a for a, b in zip(seconds["ours"], seconds["ray data"], strict=True))
        print(f"ray data / ours, paired: {ratio:.2f}")
        for engine in ENGINES:
            run = next(runs[engine])
            run.start()
            run.wait_for(NUM_CLIPS // 2)
            run.kill_actor()
            took = run.finish()
            print(
                f"{engine}, one actor killed half way: {took:.1f} s, {run.encoded - NUM_CLIPS} clips encoded twice",
                flush=True,
            )
        for engine in ENGINES:
            run = next(runs[engine])
            run.start()
            run.wait_for(NUM_CLIPS // 2)
            run.kill_job()
            before, kept = run.encoded, run.clips_kept
            run.start()
            took = run.finish()
            print(
                f"{engine}, job killed half way: {before} clips were encoded, {kept} kept; {took:.1f} s more, "
                f"{run.encoded - NUM_CLIPS} clips encoded twice",
                flush=True,
            )


if __name__ == "__main__":
    if len(sys.argv) == 4:
        child(*sys.argv[1:])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
