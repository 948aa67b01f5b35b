"""What a sweep of eight trials takes, each in a process with an LLM and several over one: memory and time.

`python -m benchmarks.sweep CHECKOUT [rounds]`. CHECKOUT is another version of this project, run by this Python. The
language model is a random Llama of 170 million parameters in a file of bfloat16, trained on in float32, so that each
process that loads it holds a copy of 0.7 GB; a file that needs no conversion would be mapped and shared by all. Memory
is the most that the trials' processes held together, each shared page counted once (PSS), looked at five times a
second. All contestants come to the same losses, bit for bit, or the benchmark fails.
"""

import contextlib
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM

from benchmarks.answering import TEXTS, write_corpus
from llm.tiny import write_tiny_llm
from pipelines.runs.metrics import read_metrics

HERE = Path(__file__).parents[1]
TRIALS, CLIPS = 8, 16
SIZES = ["qformer.hidden_width=128", "qformer.num_heads=2", "qformer.ffn_width=256", "heard_seconds=5"]
STEPS = ["steps=4", "batch_examples=4", "micro_batch_examples=1", "log_every=1", "splits=[test]"]
GOAL = ["metric=loss", "optim.warmup_steps=1", "optim.min_lr=1e-6", "optim.warmup_lr=1e-6"]


def main(checkout: Path, rounds: int) -> None:
    grid = f"grid.optim.lr=[{','.join(f'{number + 1}e-5' for number in range(TRIALS))}]"
    contestants = {
        "earlier, one process": (checkout, [grid, "threads=2"]),
        "earlier, two processes side by side": (checkout, [grid, "threads=1"]),
        "here, one trial": (HERE, ["grid.optim.lr=[1e-5]", "threads=2"]),
        "here, two processes, four trials by turns in each": (HERE, [grid, "threads=1", "trials_per_process=4"]),
        "here, eight trials by turns in one process": (HERE, [grid, "threads=2", "trials_per_process=8"]),
    }
    folder = Path(tempfile.mkdtemp(prefix="sweep-"))
    try:
        write_tiny_llm(TEXTS, folder / "llm", width=1024, num_layers=12, num_heads=16, vocab_size=4096)
        AutoModelForCausalLM.from_pretrained(folder / "llm").bfloat16().save_pretrained(folder / "llm")
        write_corpus(folder, [" ".join(text.split()[:8]) for text in TEXTS[:CLIPS]])
        verb(HERE, "prepare", "table", f"table={folder}/table.jsonl", f"audio_root={folder}/audio", f"out={folder}/m")
        verb(HERE, "extract", f"manifest={folder}/m", f"cache={folder}/c", "whisper=tiny", "beats=tiny", "threads=2")
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        memory: dict[str, list[float]] = {name: [] for name in contestants}
        losses: dict[tuple[str, ...], set[str]] = {}
        for number in range(rounds):
            for place, (name, (where, words)) in enumerate(contestants.items()):
                sweep = folder / f"sweep-{number}-{place}"
                given = [f"manifest={folder}/m", f"cache={folder}/c", f"llm={folder}/llm", f"sweep={sweep}"]
                with watched() as peak:
                    start = time.monotonic()
                    verb(where, "sweep", *given, *SIZES, *STEPS, *GOAL, *words)
                    seconds[name].append(time.monotonic() - start)
                memory[name].append(peak[0] / 1e6)
                trials = sorted(sweep.glob("trials/*"))
                found = [[line["loss"] for line in read_metrics(str(trial))] for trial in trials]
                losses.setdefault(tuple(words[1:2]), set()).add(str(found[0]))
                losses.setdefault((str(len(trials)), *words[1:2]), set()).add(str(found))
                shutil.rmtree(sweep)
        if any(len(found) > 1 for found in losses.values()):
            raise SystemExit(f"the losses differ: {losses}")
        print(f"{platform.machine()}, torch {torch.__version__}, transformers {transformers.__version__}")
        print("\n| | s, median (each round) | peak MB, median |\n|---|---|---|")
        for name, spent in seconds.items():
            each = ", ".join(f"{one:.0f}" for one in spent)
            print(f"| {name} | {statistics.median(spent):.0f} ({each}) | {statistics.median(memory[name]):,.0f} |")
    finally:
        shutil.rmtree(folder)


def verb(checkout: Path, *words: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(checkout), "RAY_worker_niceness": "0"}
    command = [sys.executable, "-m", "pipelines", *words]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stderr[-3000:]}")


@contextlib.contextmanager
def watched() -> Iterator[list[int]]:
    """Yield a list of one number, the most bytes that the processes of trials held together so far."""
    peak, ends = [0], threading.Event()

    def look() -> None:
        while not ends.wait(0.2):
            peak[0] = max(peak[0], sum(map(proportional_nbytes, Path("/proc").glob("[0-9]*"))))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        ends.set()
        thread.join()


def proportional_nbytes(process: Path) -> int:
    """Return the PSS of a process that trains trials, 0 of any other."""
    with contextlib.suppress(OSError):
        if re.search(b"Trial|ResourceTrainable", (process / "cmdline").read_bytes().partition(b"\0")[0]):
            lines = (process / "smaps_rollup").read_text().splitlines()
            return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return 0


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
