"""`salmonn train`: aligner and LoRA on cached features, by Ray Train."""

import math
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import ray
from ray.exceptions import RayActorError, RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from cluster.apart import call_in_thread
from cluster.connection import cluster_device, connect
from cluster.failures import describe_error
from cluster.room import actors_that_fit
from pipelines import storage
from pipelines.errors import JobIncompleteError, UserError
from pipelines.interface.progress import Progress
from pipelines.interface.words import counted
from pipelines.runs.folder import complete_steps
from pipelines.runs.metrics import read_metrics
from pipelines.training.config import TrainConfig, with_full_paths
from pipelines.training.monitoring.watch import reported, watched
from pipelines.training.preflight import open_run
from pipelines.training.worker.start import ProcessGroup, train_loop

ROUND_SECONDS = 60.0
"""Time after which Ray Train gives up waiting for room and tries again."""


@dataclass(frozen=True)
class TrainReport:
    """How a run ended."""

    steps: int
    loss: float
    examples: int


def train(config: TrainConfig, progress: Progress | None = None) -> TrainReport:
    """Train a run to its last step, from its newest checkpoint if it has one.

    Raises:
        UserError: If the data, the LLM or the run's folder do not fit the config, or another job trains the run.
        JobIncompleteError: If the workers failed for good; checkpoints stay.
    """
    return train_in_turn([config], progress)[0]


def train_in_turn(configs: Sequence[TrainConfig], progress: Progress | None = None) -> list[TrainReport]:
    """Train several runs one after the other in the same workers, whose start costs as much as a short run.

    A run may start from one before it. Workers, threads and Ray are the first run's. Raises as `train`.
    """
    configs = [with_full_paths(config) for config in configs]  # workers run in folders of their own
    with ExitStack() as holds:
        for config in configs:
            holds.enter_context(storage.held(config.run))
        return _train_in_turn(configs, progress or Progress())


def _train_in_turn(configs: Sequence[TrainConfig], progress: Progress) -> list[TrainReport]:
    start = time.monotonic()
    with progress.opening("train: looking at examples, features and LLM"):
        num_examples = [
            len(open_run(config, pending=[other.run for other in configs[:place]]))
            for place, config in enumerate(configs)
        ]
    todo = [config for config in configs if not _is_complete(config)]
    for config in configs:
        if config not in todo:
            print(f"{config.run}: complete, nothing to do ({counted(config.steps, 'step')}); steps=MORE goes on")
    if todo:
        with progress.opening("train: Ray is starting"):
            own_cluster = connect(todo[0].ray)
        total = sum(config.steps for config in todo)
        with (
            progress.phase("train", unit="steps", total=total) as phase,
            watched(todo, phase),
            reported(todo),
            _scored(todo),
        ):
            _fit(todo, own_cluster=own_cluster)
    reports = [_report(config, examples) for config, examples in zip(configs, num_examples, strict=True)]
    for config, report in zip(configs, reports, strict=True):
        if config in todo:
            print(
                f"{config.run}: {counted(report.steps, 'step')}, loss {report.loss:.3f}, "
                f"{counted(report.examples, 'example')}"
            )
    if todo:
        print(f"trained in {time.monotonic() - start:.1f} s, the workers' start included; steps=MORE goes on from here")
    return reports


@contextmanager
def _scored(configs: Sequence[TrainConfig]) -> Iterator[None]:
    with ExitStack() as scoring:
        if scores := [config for config in configs if config.eval_every]:
            from pipelines.training.monitoring.scores import scored  # few runs need what answers are scored with

            scoring.enter_context(scored(scores))
        yield


def _is_complete(config: TrainConfig) -> bool:
    return complete_steps(config.run)[-1:] == [config.steps]


def _report(config: TrainConfig, num_examples: int) -> TrainReport:
    if not _is_complete(config):
        raise JobIncompleteError(f"{config.run}: ended at step {complete_steps(config.run)[-1:]} of {config.steps}")
    return TrainReport(config.steps, read_metrics(config.run)[-1]["loss"], num_examples)


def _fit(configs: Sequence[TrainConfig], *, own_cluster: bool) -> None:
    first = configs[0]
    device = cluster_device(first.device)
    use_gpu = device == "cuda"
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = actors_that_fit(nodes, {"CPU": first.threads, "GPU": int(use_gpu)})
    if (first.min_workers or first.workers) > room:
        short = f"workers={first.workers} with threads={first.threads} on {device} each"
        if own_cluster:
            raise UserError(f"{short}: this machine has room for {room}")
        print(f"{short}: the cluster has room for {room} now; waiting for it to grow", file=sys.stderr)
    storage_path = storage.join(first.run, "ray")  # Ray's own records of a launch; only the run's count
    trainer = DataParallelTrainer(
        train_loop,
        train_loop_config={"configs": list(configs)},
        backend_config=ProcessGroup(first.collective_timeout_seconds),
        scaling_config=ScalingConfig(
            num_workers=(first.min_workers, first.workers) if first.min_workers else first.workers,  # type: ignore[arg-type]  # the types are the earlier version's
            use_gpu=use_gpu,
            resources_per_worker={"CPU": first.threads},
        ),
        run_config=RunConfig(
            name=f"launch-{uuid.uuid4().hex[:12]}",
            storage_path=storage_path,
            failure_config=FailureConfig(
                max_failures=first.max_failures,
                controller_failure_limit=math.ceil(first.no_workers_seconds / ROUND_SECONDS),  # type: ignore[call-arg]  # as above
            ),
        ),
    )
    try:
        # In the main thread Ray Train takes an interrupt for itself, and ends with 1 and without a word.
        reason = call_in_thread(trainer.fit).return_value  # type: ignore[attr-defined]  # the types are the earlier version's
    except (KeyboardInterrupt, SystemExit):
        ray.shutdown()  # the workers end before the run's folder is let go
        raise
    except TrainingFailedError as error:
        failures = getattr(error, "worker_failures", None)
        lacking = f"its workers did not start (no_workers_seconds={first.no_workers_seconds:g}): {error}"
        reason = _describe_failures(failures) if failures else lacking
        run = next((config.run for config in configs if not _is_complete(config)), first.run)
        raise JobIncompleteError(f"{run}: training failed: {reason}") from error
    if reason:  # a worker returns why there is no sense in trying again
        raise JobIncompleteError(reason)


def _describe_failures(failures: Mapping[int, Exception]) -> str:
    """Return, of workers' failures by rank, the one that the others may follow from: a death, or its own error."""

    def follows(rank: int) -> bool:
        text = str(failures[rank]).lower()
        return not isinstance(failures[rank], RayActorError) and ("gloo" in text or "nccl" in text)

    rank = min(failures, key=lambda rank: (follows(rank), rank))
    error = failures[rank]
    return f"worker {rank}: {describe_error(error) if isinstance(error, RayError) else error}"
