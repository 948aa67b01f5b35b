"""Extraction and training as their workers do them, without Ray: each in a process that a test may kill.

Processes are forked from a server that has imported everything, so that a fault costs a second and not a start of
workers. What Ray adds is the other chaos tests' part.
"""

import multiprocessing
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess

import torch

from cluster.unit_queue import Attempt
from encoders.clip_encoder import load_clip_encoder
from pipelines import storage
from pipelines.cache.encoder_recipe import recipe_of
from pipelines.cache.index import committed_units
from pipelines.cache.plan import extend_plan, read_units
from pipelines.cache.recipe import RECIPE, require_recipe, write_recipe
from pipelines.extraction.messages import WorkerConfig
from pipelines.extraction.worker import ExtractWorker
from pipelines.manifest.tables import read_clips
from pipelines.training.config import TrainConfig
from pipelines.training.preflight import open_run
from pipelines.training.worker.loop import TrainWorker

SHARD_NBYTES = 1_000_000
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])


def start(work: Callable[..., None], *arguments: object) -> ForkServerProcess:
    """Start a piece of work in a process of its own."""
    process = FORKS.Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


def imported() -> None:
    """Do nothing: what it ends after is a start."""


def extract_here(cache: str, manifest: str) -> None:
    """Plan, encode and commit what is left of a cache."""
    torch.set_num_threads(1)
    recipe = recipe_of(load_clip_encoder(whisper="tiny", beats="tiny"), codec="float16", precision="float32")
    require_recipe(cache, recipe)
    if not storage.file_exists(storage.join(cache, RECIPE)):
        write_recipe(cache, recipe, encoders={"speech": "tiny", "audio": "tiny"}, recorded={})
    extend_plan(cache, read_clips(manifest), recipe=recipe, shard_nbytes=SHARD_NBYTES)
    keys = {"whisper": "tiny", "beats": "tiny", "device": "cpu", "threads": 1, "batch_clips": 4}
    worker = ExtractWorker(WorkerConfig(cache=cache, recipe=recipe, **keys))
    for unit in read_units(cache, skip=committed_units(cache)):
        worker.run(unit, Attempt())


def train_on(config: TrainConfig) -> None:
    """Begin a run, or go on with it, to its end."""
    torch.set_num_threads(1)
    open_run(config, pending=[])
    TrainWorker(config, 0, 1, torch.device("cpu")).run()
