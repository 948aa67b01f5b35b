"""Held-out scores on real recordings, with curves, through the verbs: prepare, extract, train, evaluate.

`python -m benchmarks.real_recordings ../shared/data [out] [seeds]`: spoken digits, one speaker never heard in training,
and ESC-10's sounds, one fold held out, through the real encoder of Whisper tiny.en (frames of speech alone). One run
learns both tasks, per seed and language model: stories260K, a real one, and the demo's random one. Ends in a table of
scores, of the last and the best checkpoint, and a page of curves, out/curves.html.
"""

import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from pipelines.extraction.config import ExtractConfig
from pipelines.extraction.extract import extract
from pipelines.inference.config import EvaluateConfig
from pipelines.inference.evaluate import evaluate
from pipelines.interface.config import load_config
from pipelines.manifest.corpora.esc import EscConfig, prepare_esc
from pipelines.manifest.corpora.table import TableConfig, prepare_table
from pipelines.runs.compare import runs_compare
from pipelines.runs.config import RunsCompareConfig
from pipelines.runs.metrics import read_metrics
from pipelines.training.config import TrainConfig
from pipelines.training.train import train_in_turn

SPEAKER = "george"
KEYS = ["steps=600", "valid_splits=[test]", "valid_every=50", "heard_seconds=5", "log_every=10", "keep_checkpoints=1"]
KEYS += ["qformer.dropout=0.1", "lora.dropout=0.1"]


def prepare(data: Path, out: Path) -> str:
    """Write the manifest of both corpora, if it is not there."""
    manifest = str(out / "manifest")
    if Path(manifest).exists():
        return manifest
    labels = map(json.loads, (data / "labels.jsonl").read_text().splitlines())
    rows = [
        {
            "path": label["path"],
            "text": label["text"],
            "task": "asr",
            "question": "Which digit is spoken?",
            "split": "test" if label["speaker"] == SPEAKER else "train",
        }
        for label in labels
        if label["task"] == "digit"
    ]
    (out / "digits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare_table(TableConfig(table=str(out / "digits.jsonl"), audio_root=str(data), out=manifest, corpus="digits"))
    prepare_esc(EscConfig(root=str(data / "esc10"), test_fold=2, corpus="esc10", out=manifest, append=True))
    return manifest


def main(data: Path, out: Path, seeds: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    manifest, cache = prepare(data, out), str(out / "cache")
    whisper = str(data / "weights" / "whisper-tiny.en-encoder")
    extract(ExtractConfig(manifest=manifest, cache=cache, whisper=whisper, beats="none", shard_megabytes=64))
    data_keys = [f"manifest={manifest}", f"cache={cache}"]
    llms = {"stories260K": str(data / "weights" / "tinystories-260k-llama"), "random": "tiny"}
    runs = {
        (name, seed): load_config(
            TrainConfig, ["tiny", *KEYS, *data_keys, f"run={out}/{name}-{seed}", f"llm={llm}", f"seed={seed}"]
        )
        for name, llm in llms.items()
        for seed in range(seeds)
    }
    start = time.monotonic()
    train_in_turn(list(runs.values()))
    print(f"{len(runs)} runs in {time.monotonic() - start:.0f} s")
    waits = [line["data_wait_fraction"] for run in runs.values() for line in read_metrics(run.run)]
    print(f"waiting for data: median {statistics.median(waits):.2%} of the time")
    scores: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (name, _), run in runs.items():
        for checkpoint in ("last", "best"):
            config = EvaluateConfig(
                run=run.run, manifest=manifest, cache=cache, checkpoint=checkpoint, num_beams=1, max_new_tokens=8
            )
            for task in evaluate(config):
                value = next(score.value for score in task.scores if score.name in ("accuracy", "word_accuracy"))
                scores[f"{name}, {checkpoint}", task.task].append(value or 0.0)
    print("\n| language model, checkpoint | task | right answers, seed by seed | median |\n|---|---|---|---|")
    for (name, task_name), found in scores.items():
        print(f"| {name} | {task_name} | {', '.join(f'{x:.3f}' for x in found)} | {statistics.median(found):.3f} |")
    runs_compare(RunsCompareConfig(runs=[run.run for run in runs.values()], out=str(out / "curves.html")))


if __name__ == "__main__":
    arguments = sys.argv[1:] + ["", "", ""][len(sys.argv) - 1 :]
    main(
        Path(arguments[0]).absolute(),
        Path(arguments[1] or tempfile.mkdtemp(prefix="salmonn-")).absolute(),
        int(arguments[2] or 3),
    )
