"""What it saves to hear clips at their own length, and what that does to what is learnt.

`python -m benchmarks.hear step [rounds] [CHECKOUT]`: the step of `benchmarks.train_step` and its cache, with clips as
long as LibriSpeech's, heard with the silence behind them (`hear=all`) and without it (`hear=clip`), in turns; beside
them another version's step, whose checkout has a `.venv` of its own. The peak is what a first step adds to a process.

`python -m benchmarks.hear runs DATA [out] [seeds]`: runs of `benchmarks.real_recordings` in both modes with the random
language model: held-out loss and right answers over the seeds, what is read and how long a step takes.
"""

import multiprocessing
import platform
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers

from benchmarks.real_recordings import KEYS, prepare
from benchmarks.train_step import ALL_SIZES, LADDER, Step, peak_megabytes, write_corpus
from encoders.features import STORED_TYPES, Hear, SpeechFrames
from pipelines.cache.plan import predict_nbytes
from pipelines.cache.recipe import Recipe, StreamRecipe
from pipelines.cache.tools.config import CacheTrimConfig
from pipelines.cache.tools.copy import cache_trim
from pipelines.extraction.config import ExtractConfig
from pipelines.extraction.extract import extract
from pipelines.inference.config import EvaluateConfig
from pipelines.inference.evaluate import evaluate
from pipelines.interface.config import load_config
from pipelines.runs.metrics import read_metrics
from pipelines.training.config import TrainConfig
from pipelines.training.train import train_in_turn

SECONDS = (14.1, 3.6, 15.4, 12.5, 16.0, 8.2, 14.8, 17.4, 2.2, 15.1, 13.5, 10.8, 15.7, 5.6, 16.4, 14.5)
"""Lengths spread as LibriSpeech's are, in any order: mean 12.2, most of them 12 to 16."""
MODES: tuple[Hear, ...] = ("all", "clip")
OURS = LADDER[-1]
PROCESS = """
import sys, time
from contextlib import redirect_stdout
from pathlib import Path
from benchmarks.train_step import LADDER, Step, write_corpus
folder = Path(sys.argv[1])
folder.mkdir()
with redirect_stdout(sys.stderr):
    write_corpus({corpus})
step = Step({step})
for _ in sys.stdin:
    start = time.perf_counter()
    step.run(LADDER[-1])
    print(time.perf_counter() - start, flush=True)
"""
"""A contestant, in a process of its own, as two models in one are slower; it makes a step for each line it is given."""
HERE = Path(__file__).parents[1]


def steps(rounds: int, checkout: Path | None) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_corpus(folder, SECONDS)
        processes: dict[str, subprocess.Popen[str]] = {
            mode: _start(HERE, folder / f"of-{mode}", f"folder, {list(SECONDS)}", f"folder, {mode!r}") for mode in MODES
        }
        if checkout:  # it hears 30 s of every clip, however long that is, so its clips are of 30 s
            processes["other version"] = _start(checkout, folder / "other", "folder", "folder")
        times: dict[str, list[float]] = defaultdict(list)
        for _ in range(rounds + 1):
            for name, process in processes.items():
                times[name].append(_ask(process))
        for process in processes.values():
            process.kill()
        by_mode = {mode: Step(folder, mode) for mode in MODES}
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            peaks = {mode: pool.apply(peak_megabytes, (folder, OURS, mode)) for mode in MODES}
    report(by_mode, {name: found[1:] for name, found in times.items()}, peaks)


def _start(checkout: Path, folder: Path, corpus: str, step: str) -> subprocess.Popen[str]:
    """Start a contestant; `corpus` and `step` are the arguments of its `write_corpus` and `Step`."""
    command = [str(checkout / ".venv/bin/python"), "-c", PROCESS.format(corpus=corpus, step=step), str(folder)]
    return subprocess.Popen(command, cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _ask(process: subprocess.Popen[str]) -> float:
    """Return the seconds of one more step."""
    assert process.stdin and process.stdout
    process.stdin.write("step\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def report(by_mode: dict[Hear, Step], times: dict[str, list[float]], peaks: dict[Hear, float]) -> None:
    print(f"{platform.machine()}, one thread, torch {torch.__version__}, transformers {transformers.__version__}")
    print(f"{len(SECONDS)} examples of {min(SECONDS)} to {max(SECONDS)} s, mean {np.mean(SECONDS):.1f} s\n")
    print("| hears | tokens per example | s, median | of hear=all | peak MB | TFLOP per example 7B | 13B |")
    print("|---|---|---|---|---|---|---|")
    for name, found in times.items():
        ratio = statistics.median(a / b for a, b in zip(found, times["all"], strict=True))
        step = by_mode.get(name)  # type: ignore[call-overload]  # the other version has none
        flop = [f"{step.flop(OURS, ALL_SIZES[size]) / 1e12:.2f}" if step else "—" for size in ("7B", "13B")]
        tokens = f"{statistics.mean(step.lengths):.1f}" if step else "—"
        peak = f"{peaks[name]:.0f}" if step else "—"  # type: ignore[index]
        print(f"| {name} | {tokens} | {statistics.median(found):.2f} | {ratio:.2f} | {peak} | {' | '.join(flop)} |")
    for size in ("7B", "13B"):
        ours, theirs = (by_mode[mode].flop(OURS, ALL_SIZES[size]) for mode in ("clip", "all"))
        print(f"arithmetic of a step, {size}: {ours / theirs:.2f}")
    streams = {"speech": StreamRecipe("", 1280), "audio": StreamRecipe("", 768)}
    ways: tuple[SpeechFrames, ...] = ("all", "heard")
    whole = 0
    for codec in STORED_TYPES:
        for speech_frames in ways:
            recipe = Recipe(streams, codec, "float32", "sdpa", speech_frames=speech_frames)
            nbytes = int(predict_nbytes(np.array(SECONDS), recipe, codec).sum())
            whole = whole or nbytes
            print(f"bytes of Whisper large-v2 and BEATs, {codec} {speech_frames}: {nbytes / whole:.3f} of float16 all")


def runs(data: Path, out: Path, seeds: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    manifest, cache, trimmed = prepare(data, out), str(out / "cache"), str(out / "trimmed")
    whisper = str(data / "weights" / "whisper-tiny.en-encoder")
    extract(ExtractConfig(manifest=manifest, cache=cache, whisper=whisper, beats="none", shard_megabytes=64))
    cache_trim(CacheTrimConfig(cache=cache, out=trimmed))
    caches = {"all": cache, "clip": trimmed}
    configs = {
        (mode, seed): load_config(
            TrainConfig,
            [
                *("tiny", *KEYS, f"manifest={manifest}", f"cache={caches[mode]}", "llm=tiny"),
                *(f"run={out}/{mode}-{seed}", f"hear={mode}", f"seed={seed}"),
            ],
        )
        for seed in range(seeds)
        for mode in MODES
    }
    train_in_turn(list(configs.values()))
    print("| hears | held-out nats per token | right digits | right sounds | s per step | MB read per step |")
    print("|---|---|---|---|---|---|")
    for mode in MODES:
        found: dict[str, list[float]] = defaultdict(list)
        for seed in range(seeds):
            config = configs[mode, seed]
            _collect(config, found)
            evaluation = EvaluateConfig(
                run=config.run, manifest=manifest, cache=config.cache, num_beams=1, max_new_tokens=8
            )
            for task in evaluate(evaluation):
                value = next(score.value for score in task.scores if score.name in ("accuracy", "word_accuracy"))
                found[task.task].append(value or 0.0)
        cells = [found[name] for name in ("valid_loss", "asr", "aqa", "step", "read")]
        print(f"| {mode} | {' | '.join(_listed(values) for values in cells)} |")
    for name, folder in caches.items():
        nbytes = sum(path.stat().st_size for path in Path(folder, "shards").iterdir())
        print(f"cache for hear={name}: {nbytes / 1e6:.1f} MB")


def _collect(config: TrainConfig, found: dict[str, list[float]]) -> None:
    lines = read_metrics(config.run)
    found["valid_loss"].append(min(line["valid_loss"] for line in lines if "valid_loss" in line))
    found["step"].append(statistics.median(line["step_seconds"] for line in lines))
    found["read"].append(statistics.median(line["megabytes_per_second"] * line["step_seconds"] for line in lines))


def _listed(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})" if values else "—"


if __name__ == "__main__":
    what, *more = sys.argv[1:]
    if what == "step":
        steps(int(more[0]) if more else 5, Path(more[1]).absolute() if len(more) > 1 else None)
    else:
        place = Path(more[1]).absolute() if len(more) > 1 else Path(tempfile.mkdtemp(prefix="salmonn-"))
        runs(Path(more[0]).absolute(), place, int(more[2]) if len(more) > 2 else 3)
