"""What tests of several folders make for themselves: caches, runs, and what their metrics say."""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tensorboardX.proto.event_pb2 import Event

from cluster.unit_queue import Attempt
from encoders.clip_encoder import load_clip_encoder
from pipelines.cache.encoder_recipe import recipe_of
from pipelines.cache.index import committed_units
from pipelines.cache.plan import (
    extend_plan,
    read_units,
)
from pipelines.cache.recipe import write_recipe
from pipelines.extraction.messages import WorkerConfig
from pipelines.extraction.worker import ExtractWorker
from pipelines.manifest.corpora.table import TableConfig, prepare_table
from pipelines.manifest.tables import read_clips
from pipelines.runs.metrics import read_metrics
from pipelines.training.config import OptimConfig, TrainConfig
from pipelines.training.preflight import open_run
from pipelines.training.worker.loop import TrainWorker
from qformer.config import QFormerConfig
from tests import ROOT
from tests.toy import write_tone_corpus


def make_worker(cache, *, codec="float16", whisper="tiny", beats="tiny", **heard) -> ExtractWorker:
    encoder = load_clip_encoder(whisper=whisper, beats=beats)
    recipe = replace(recipe_of(encoder, codec=codec, precision="float32"), **heard)
    encoders = {"speech": whisper, "audio": beats}
    write_recipe(str(cache), recipe, encoders=encoders, recorded={})
    return ExtractWorker(
        WorkerConfig(
            cache=str(cache), whisper=whisper, beats=beats, recipe=recipe, device="cpu", threads=1, batch_clips=4
        )
    )


def prepare_tones(folder, **keys) -> str:
    corpus = write_tone_corpus(folder, **keys)
    table = str(corpus / "table.jsonl")
    prepare_table(TableConfig(table=table, audio_root=str(corpus / "audio"), out=str(folder / "m")))
    return str(folder / "m")


def fill(cache, manifest, worker, *, shard_nbytes=1_500_000):
    extend_plan(str(cache), read_clips(manifest), recipe=worker.config.recipe, shard_nbytes=shard_nbytes)
    for unit in read_units(str(cache), skip=committed_units(str(cache))):
        worker.run(unit, Attempt())


def shard_digests(cache):
    folders = ("shards", "index", "rejects")
    files = [file for folder in folders for file in sorted(cache.glob(f"{folder}/[!.]*"))]
    return {str(file.relative_to(cache)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


SMALL = QFormerConfig(hidden_width=32, num_heads=2, ffn_width=64, dropout=0.1)
FAST = OptimConfig(lr=3e-3, min_lr=1e-4, warmup_lr=1e-3, warmup_steps=2)


def config_of(corpus, run, **keys) -> TrainConfig:
    settings = {"steps": 6, "batch_examples": 8, "micro_batch_examples": 2, "log_every": 1, "checkpoint_every": 2}
    settings |= {"heard_seconds": 2.0, "qformer": SMALL, "optim": FAST, "llm": "tiny", "keep_checkpoints": 9}
    return TrainConfig(manifest=corpus[0], cache=corpus[1], run=str(run), **(settings | keys))


def train_here(config: TrainConfig) -> None:
    """Train in this process, as one worker does."""
    open_run(config, pending=[])
    TrainWorker(config, 0, 1, torch.device("cpu")).run()


def losses(run) -> list[float]:
    return [line["loss"] for line in read_metrics(str(run))]


def valid_losses(run) -> list[float]:
    return [line["valid_loss"] for line in read_metrics(str(run)) if "valid_loss" in line]


def events(file: Path) -> Iterator[Event]:
    """Read TensorBoard's records: length, its checksum, bytes, their checksum."""
    data, place = file.read_bytes(), 0
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        yield Event.FromString(data[place + 12 : place + 12 + length])
        place += 16 + length


README = (ROOT / "README.md").read_text()


def stores_of(run) -> Iterator[Path]:
    """Yield the folders of a run's answers, one for each way of answering."""
    return (path.parent for path in (Path(run) / "answers").glob("*/setup.json"))


def metrics_line(step: int, **numbers: Any) -> dict[str, Any]:
    """Return a line of metrics with all that every line has."""
    every = dict.fromkeys(
        ("loss", "token_accuracy", "examples_per_second", "audio_hours_per_second", "peak_memory_mb"), 1.0
    )
    parts = {"loss_by_task": {"asr": 1.0}, "examples_by_task": {"asr": 4}, "seconds_by_part": {}}
    rest = {"data_wait_fraction": 0.0, "megabytes_per_second": 0.0, "skipped_steps": 0}
    return {"step": step, **every, **parts, **rest, **numbers}
