"""What the pipeline adds to the bare encoders, and how fast the cache gives features back.

`python -m benchmarks.pipeline [rounds]`: alternating rounds in one process on the same clips, medians and ratios. Whole
clips of 30 s, so that both encoders do their full work; tiny encoders, which make everything around them weigh most.
"""

import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
import webdataset

from cluster.unit_queue import Attempt
from encoders.audio import SAMPLE_RATE_HZ
from encoders.clip_encoder import load_clip_encoder
from encoders.sound.clips import load_clip
from pipelines.cache.encoder_recipe import recipe_of
from pipelines.cache.plan import extend_plan, read_units
from pipelines.cache.reader import FeatureCache
from pipelines.cache.recipe import write_recipe
from pipelines.extraction.messages import WorkerConfig
from pipelines.extraction.worker import ExtractWorker
from pipelines.manifest.corpora.table import TableConfig, prepare_table
from pipelines.manifest.tables import read_clips

NUM_CLIPS = 32
CLIP_SECONDS = 30


def write_corpus(folder: Path) -> str:
    """Write clips of noise and their manifest."""
    rng = np.random.Generator(np.random.PCG64(0))
    lines = ["path,text"]
    for number in range(NUM_CLIPS):
        samples = 0.1 * rng.standard_normal(CLIP_SECONDS * SAMPLE_RATE_HZ)
        soundfile.write(folder / f"{number}.flac", samples, SAMPLE_RATE_HZ)
        lines.append(f"{number}.flac,noise")
    (folder / "table.csv").write_text("\n".join(lines))
    prepare_table(TableConfig(table=str(folder / "table.csv"), out=str(folder / "manifest")))
    return str(folder / "manifest")


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest, cache = write_corpus(folder), str(folder / "cache")
        encoder = load_clip_encoder(whisper="tiny", beats="tiny")
        recipe = recipe_of(encoder, codec="float16", precision="float32")
        write_recipe(cache, recipe, encoders={"speech": "tiny", "audio": "tiny"}, recorded={})
        extend_plan(cache, read_clips(manifest), recipe=recipe, shard_nbytes=10**9)
        worker = ExtractWorker(
            WorkerConfig(
                cache=cache, whisper="tiny", beats="tiny", recipe=recipe, device="cpu", threads=1, batch_clips=8
            )
        )
        (unit,) = read_units(cache)
        waves = [load_clip(clip.located()) for clip in unit.clips]
        times: dict[str, list[float]] = {}
        for _ in range(rounds):
            times.setdefault("bare encoders, decoded waves", []).append(seconds_of(lambda: encoder.encode(waves)))
            times.setdefault("unit: decode, encode, write", []).append(seconds_of(lambda: worker.run(unit, Attempt())))
            reader = FeatureCache(cache)
            order = np.random.Generator(np.random.PCG64(1)).permutation(NUM_CLIPS)
            shuffled = seconds_of(lambda: [reader.read(int(p)) for p in order])  # noqa: B023
            times.setdefault("read, shuffled by clip", []).append(shuffled)
            shards = webdataset.WebDataset(f"{cache}/shards/000000.tar", shardshuffle=False)
            in_order = seconds_of(lambda: list(shards.decode()))  # noqa: B023
            times.setdefault("read, stock webdataset in order", []).append(in_order)
        report(times, nbytes=(Path(cache) / "shards" / "000000.tar").stat().st_size)


def report(times: dict[str, list[float]], *, nbytes: int) -> None:
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(
        f"{NUM_CLIPS} clips of {CLIP_SECONDS} s, {nbytes / 1e6:.1f} MB; {platform.machine()}, torch {torch.__version__}"
    )
    print("| | median s | clips/s | × real time |\n|---|---|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {median:.3f} | {NUM_CLIPS / median:.1f} | {NUM_CLIPS * CLIP_SECONDS / median:.0f} |")
    bare, unit, shuffled, stock = times.values()
    print(f"unit / bare encoders: {statistics.median(u / b for u, b in zip(unit, bare, strict=True)):.3f}")
    print(f"stock / shuffled read: {statistics.median(s / r for s, r in zip(stock, shuffled, strict=True)):.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
