"""Extraction, training and answering as their workers do them, without Ray: each in a process that a test may kill.

Processes are forked from a server that has imported everything, so that a fault costs a second and not a start of
workers. What Ray adds is the other chaos tests' part.
"""

import contextlib
import io
import multiprocessing
import sys
import traceback
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess

import ray
import torch

from cluster.unit_queue import Attempt
from encoders.clip_encoder import load_clip_encoder
from pipelines import storage
from pipelines.cache.encoder_recipe import recipe_of
from pipelines.cache.index import committed_units
from pipelines.cache.plan import extend_plan, read_units
from pipelines.cache.recipe import RECIPE, Recipe, require_recipe, write_recipe
from pipelines.errors import JobIncompleteError
from pipelines.extraction.messages import WorkerConfig
from pipelines.extraction.worker import ExtractWorker
from pipelines.inference.answers import DecodeSettings, open_answers
from pipelines.inference.config import EvaluateConfig
from pipelines.inference.evaluate import evaluate
from pipelines.inference.held_out import open_held_out, with_clips
from pipelines.inference.units import AnswerConfig, cut_units
from pipelines.inference.worker import AnswerWorker
from pipelines.manifest.tables import read_clips
from pipelines.training.config import TrainConfig
from pipelines.training.preflight import open_run
from pipelines.training.worker.loop import TrainWorker

SHARD_NBYTES = 1_000_000
STORAGE_FAILED, IS_A_BUG = 1, 70
"""How a process ends that another attempt may follow, and how it must not end."""
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])


def start(work: Callable[..., None], *arguments: object) -> ForkServerProcess:
    """Start a piece of work in a process of its own."""
    process = FORKS.Process(target=_told, args=(work, *arguments), daemon=True)
    process.start()
    return process


def _told(work: Callable[..., None], *arguments: object) -> None:
    """Do a piece of work and end with what came of it: storage that fails is no bug."""
    try:
        work(*arguments)
    except (OSError, JobIncompleteError) as error:
        print(f"ended: {error!r}"[:200], flush=True)
        sys.exit(STORAGE_FAILED)
    except Exception:
        traceback.print_exc()
        sys.exit(IS_A_BUG)


def imported() -> None:
    """Do nothing: what it ends after is a start."""


def plan_here(cache: str, manifest: str) -> Recipe:
    """Begin a cache, if nobody has."""
    recipe = recipe_of(load_clip_encoder(whisper="tiny", beats="tiny"), codec="float16", precision="float32")
    require_recipe(cache, recipe)
    if not storage.file_exists(storage.join(cache, RECIPE)):
        write_recipe(cache, recipe, encoders={"speech": "tiny", "audio": "tiny"}, recorded={})
    extend_plan(cache, read_clips(manifest), recipe=recipe, shard_nbytes=SHARD_NBYTES)
    return recipe


def extract_here(cache: str, manifest: str) -> None:
    """Plan, encode and commit what is left of a cache."""
    torch.set_num_threads(1)
    recipe = plan_here(cache, manifest)
    keys = {"whisper": "tiny", "beats": "tiny", "device": "cpu", "threads": 1, "batch_clips": 4}
    worker = ExtractWorker(WorkerConfig(cache=cache, recipe=recipe, **keys))
    for unit in read_units(cache, skip=committed_units(cache)):
        worker.run(unit, Attempt())


def train_on(config: TrainConfig) -> None:
    """Begin a run, or go on with it, to its end."""
    torch.set_num_threads(1)
    open_run(config, pending=[])
    TrainWorker(config, 0, 1, torch.device("cpu")).run()


def answer_here(config: EvaluateConfig) -> None:
    """Answer what has no answer yet, as a worker that is given all units; a unit is a batch."""
    model, questions = open_held_out(config)
    wanted = with_clips(questions, questions.table["clip_id"].combine_chunks())
    settings = DecodeSettings(
        num_beams=config.num_beams, max_new_tokens=config.max_new_tokens, lora_scaling=config.lora_scaling
    )
    store = open_answers(config.run, model.step, model.spec, settings)
    keys = {"whisper": "", "beats": "", "device": "cpu", "threads": 1, "batch_examples": config.batch_examples}
    where = {"run": config.run, "cache": config.cache, "stores": (store.uri,)}
    worker = AnswerWorker(AnswerConfig(step=model.step, spec=model.spec, settings=(settings,), **where, **keys))
    units = cut_units(
        wanted, store.read(), setting=0, workers=len(questions), batch=config.batch_examples, in_whole_batches=False
    )
    for unit in units:
        worker.run(unit)


def evaluate_here(config: EvaluateConfig) -> None:
    """Answer what has no answer yet, and write the report of all answers."""
    answer_here(config)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluate(config)
    assert not ray.is_initialized(), "answers were lacking"
