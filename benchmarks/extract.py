"""What an extraction on Ray adds to the bare encoders, with one and with two actors.

`python -m benchmarks.extract [rounds]`: Whisper base and full-size BEATs (random weights in the published layouts) on
clips of noise, one thread each. The floor is as many processes, each encoding its share of the decoded clips; the
extraction decodes, encodes, writes and commits. Rounds alternate; times run from the first unit handed out to the last
one done, so starting Ray and loading weights count on neither side.
"""

import multiprocessing
import platform
import statistics
import sys
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import ray
import soundfile
import torch

from benchmarks.encoders import write_weights
from cluster.config import RayConfig
from cluster.connection import connect
from encoders.audio import SAMPLE_RATE_HZ
from encoders.clip_encoder import load_clip_encoder
from encoders.sound.clips import load_clip
from pipelines.extraction.config import ExtractConfig
from pipelines.extraction.extract import extract
from pipelines.extraction.unit_log import read_unit_log
from pipelines.manifest.corpora.table import TableConfig, prepare_table
from pipelines.manifest.tables import read_clips

NUM_CLIPS = 32
CLIP_SECONDS = (1.0, 10.0)
SHARD_MB = 4


def write_corpus(folder: Path) -> str:
    """Write clips of noise of different lengths and their manifest."""
    rng = np.random.Generator(np.random.PCG64(0))
    lines = ["path,text"]
    for number in range(NUM_CLIPS):
        samples = 0.1 * rng.standard_normal(int(rng.uniform(*CLIP_SECONDS) * SAMPLE_RATE_HZ))
        soundfile.write(folder / f"{number}.flac", samples, SAMPLE_RATE_HZ)
        lines.append(f"{number}.flac,noise")
    (folder / "table.csv").write_text("\n".join(lines))
    prepare_table(TableConfig(table=str(folder / "table.csv"), out=str(folder / "manifest")))
    return str(folder / "manifest")


def encode_share(rank: int, ranks: int, manifest: str, weights: tuple[str, str], barrier: Barrier) -> float:
    """Return the seconds that one of several processes takes for its share of the clips."""
    torch.set_num_threads(1)
    encoder = load_clip_encoder(whisper=weights[0], beats=weights[1])
    waves = [load_clip(clip.located()) for clip in read_clips(manifest)][rank::ranks]
    barrier.wait()
    start = time.perf_counter()
    encoder.encode(waves, batch_size=8)
    return time.perf_counter() - start


def bare_seconds(ranks: int, manifest: str, weights: tuple[str, str]) -> float:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(ranks) as pool:
        barrier = manager.Barrier(ranks)
        shares = [(rank, ranks, manifest, weights, barrier) for rank in range(ranks)]
        return max(pool.starmap(encode_share, shares, chunksize=1))


def extract_seconds(actors: int, manifest: str, weights: tuple[str, str]) -> float:
    with tempfile.TemporaryDirectory() as cache:
        keys = {"whisper": weights[0], "beats": weights[1], "shard_megabytes": SHARD_MB, "workers": actors}
        extract(ExtractConfig(manifest=manifest, cache=cache, **keys))  # type: ignore[arg-type]
        (page,) = (Path(cache) / "jobs").glob("*.html")
        units = read_unit_log(str(page.with_suffix("")))
        ended, took = units["ended_seconds"].to_numpy(), units["seconds"].to_numpy()
        return float(ended.max() - (ended - took).min())


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest, weights = write_corpus(folder), write_weights(folder)
        connect(RayConfig(address="local", num_cpus=2))
        print(f"{NUM_CLIPS} clips; {platform.machine()}, ray {ray.__version__}, torch {torch.__version__}")
        print("| | bare encoders, s | extraction, s | its share of the bare speed |\n|---|---|---|---|")
        for count in (1, 2):
            pairs = [
                (bare_seconds(count, manifest, weights), extract_seconds(count, manifest, weights))
                for _ in range(rounds)
            ]
            bare, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
            share = statistics.median(floor / mine for floor, mine in pairs)
            print(f"| {count} | {bare:.1f} | {ours:.1f} | {share:.0%} |", flush=True)
        ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
