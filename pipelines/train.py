"""`salmonn train`: aligner and LoRA on cached features, by Ray Train."""

import math
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import ray
import yaml
from ray.exceptions import RayActorError, RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from cluster.connection import connect, pick_device
from cluster.failures import describe_error
from cluster.room import actors_that_fit
from encoders.features import FRAME_RATE_HZ
from llm.loading import is_hub_name, llm_width
from llm.prompts import PROMPTS, question_for
from llm.tiny import write_tiny_llm
from pipelines import storage
from pipelines.batches.example_set import ExampleSet
from pipelines.batches.micro_batch import tasks_of
from pipelines.batches.mix import MixRow, load_mix, save_mix
from pipelines.cache.reader import FeatureCache
from pipelines.interface.config import is_yaml, save_config, to_yaml
from pipelines.interface.differences import first_difference
from pipelines.interface.errors import JobIncompleteError
from pipelines.interface.progress import Phase, Progress
from pipelines.manifest.tables import read_examples
from pipelines.metrics_log import MetricsTail, read_metrics
from pipelines.parts import Parts
from pipelines.runs.folder import complete_steps
from pipelines.runs.spec import RunSpec, local_llm
from pipelines.train_config import TrainConfig
from pipelines.train_loop import MIX, load_train_examples, load_valid_examples, train_loop
from pipelines.train_report import reported
from qformer.aligner import AlignerConfig

FREE_KEYS = {
    "manifest",
    "cache",
    "mix",
    "run",
    "runs",
    "name",
    "after",
    "workers",
    "min_workers",
    "no_workers_seconds",
    "device",
    "shard_llm",
    "collective_timeout_seconds",
    "threads",
    "checkpoint_every",
    "keep_checkpoints",
    "gradient_checkpointing",
    "log_every",
    "max_failures",
    "forecast_step_seconds",
    "valid_splits",
    "valid_every",
    "max_skipped_steps",
    "wandb",
    "alarms",
    "read",
    "ray",
}
"""Keys that may change when a run continues: none changes what is computed (recipe, examples and mix are compared)."""
LOOK_SECONDS, LOOK_AFAR_SECONDS = 0.5, 10.0
"""Time between looks at a run's metrics; an object store counts requests."""
ROUND_SECONDS = 60.0
"""Time after which Ray Train gives up waiting for room and tries again."""


ConfigT = TypeVar("ConfigT", bound=TrainConfig)


@dataclass(frozen=True)
class TrainReport:
    """How a run ended."""

    steps: int
    loss: float
    examples: int


def train(config: TrainConfig, progress: Progress | None = None) -> TrainReport:
    """Train a run to its last step, from its newest checkpoint if it has one.

    Raises:
        ValueError: If the data, the LLM or the run's folder do not fit the config.
        JobIncompleteError: If the workers failed for good; checkpoints stay.
    """
    return train_in_turn([config], progress)[0]


def train_in_turn(configs: Sequence[TrainConfig], progress: Progress | None = None) -> list[TrainReport]:
    """Train several runs one after the other in the same workers, whose start costs as much as a short run.

    A run may start from one before it. Workers, threads and Ray are those of the first. Raises as `train`.
    """
    start = time.monotonic()
    configs = [with_full_paths(config) for config in configs]  # workers run in folders of their own
    num_examples = [
        len(open_run(config, pending=[other.run for other in configs[:place]])) for place, config in enumerate(configs)
    ]
    todo = [config for config in configs if not _is_complete(config)]
    for config in configs:
        if config not in todo:
            print(f"{config.run}: complete, nothing to do ({config.steps} steps)")
    if todo:
        own_cluster = connect(todo[0].ray)
        total = sum(config.steps for config in todo)
        with (
            (progress or Progress()).phase("train", unit="steps", total=total) as phase,
            watched(todo, phase),
            reported(todo),
        ):
            _fit(todo, own_cluster=own_cluster)
    reports = [_report(config, examples) for config, examples in zip(configs, num_examples, strict=True)]
    for config, report in zip(configs, reports, strict=True):
        if config in todo:
            print(f"{config.run}: {report.steps} steps, loss {report.loss:.3f}, {report.examples} examples")
    if todo:
        print(f"trained in {time.monotonic() - start:.1f} s, the workers' start included")
    return reports


def with_full_paths(config: TrainConfig) -> TrainConfig:
    """Return the config with folders that mean the same everywhere, those of stages found by their names."""
    if config.runs:
        before = storage.join(config.runs, config.after) if config.after else ""
        run = config.run or storage.join(config.runs, config.name)
        config = replace(config, run=run, init_from=config.init_from or before)
    return full_paths(config)


def full_paths(config: ConfigT) -> ConfigT:
    """Return the config with folders, and a mix of one's own, that mean the same everywhere."""
    is_path = {
        "llm": config.llm != "tiny" and not is_hub_name(config.llm),
        "mix": is_yaml(config.mix),
    }
    keys = ("manifest", "cache", "run", "runs", "init_from", *(key for key, is_one in is_path.items() if is_one))
    paths: dict[str, Any] = {key: storage.full_path(getattr(config, key)) for key in keys if getattr(config, key)}
    return replace(config, **paths)


def _is_complete(config: TrainConfig) -> bool:
    return complete_steps(config.run)[-1:] == [config.steps]


def _report(config: TrainConfig, num_examples: int) -> TrainReport:
    if not _is_complete(config):
        raise JobIncompleteError(f"{config.run}: ended at step {complete_steps(config.run)[-1:]} of {config.steps}")
    return TrainReport(config.steps, read_metrics(config.run)[-1]["loss"], num_examples)


@dataclass(frozen=True)
class RunInputs:
    """What a run learns from."""

    cache: FeatureCache
    examples: ExampleSet
    mix: tuple[MixRow, ...]


def open_run(config: TrainConfig, *, pending: Sequence[str], parts: Parts | None = None) -> ExampleSet:
    """Check everything that can be checked before a cluster is asked for; return the examples to learn from."""
    inputs = check_run(config, parts)
    if not is_described(config.run):
        describe_run(config, inputs, pending=pending)
    missing = inputs.examples.missing
    if missing.num_rows:
        uri = storage.join(config.run, "missing.parquet")
        storage.write_table(uri, missing)
        print(f"{config.run}: {missing.num_rows} examples are left out, {uri} lists them: no features")
    if inputs.examples.mixture:
        print(f"{config.run}: {inputs.examples.mixture.describe()}")
    return inputs.examples


def check_run(config: TrainConfig, parts: Parts | None = None) -> RunInputs:
    """Check what a run learns from and, if it is to continue, that it goes on as it began; writes nothing.

    Raises:
        ValueError: If the data or the run's folder do not fit the config.
    """
    parts = parts or Parts()
    _check_run_folder(config)
    cache = parts.open_cache(config.cache, config.read)
    mix = load_mix(config.mix) if config.mix else ()
    examples = load_train_examples(config, cache, mix, parts)
    _check_prompts(examples.table)
    if config.valid_every:
        _check_held_out(config, mix)
        load_valid_examples(config, cache, tasks_of(examples), parts)
    if is_described(config.run):
        _check_same_inputs(config, cache, examples.digest, mix)
    return RunInputs(cache, examples, mix)


def is_described(run: str) -> bool:
    """Tell whether a run has begun: its description is written last."""
    return storage.file_exists(storage.join(run, "run.json"))


def _check_run_folder(config: TrainConfig) -> None:
    uri = storage.join(config.run, "config.yaml")
    if not storage.file_exists(uri):
        return
    there = yaml.safe_load(storage.read_bytes(uri)) or {}
    here: dict[str, Any] = yaml.safe_load(to_yaml(config))
    kept = [{key: value for key, value in values.items() if key not in FREE_KEYS} for values in (here, there)]
    difference = first_difference(kept[0], kept[1])
    if difference:
        raise ValueError(f"{config.run} holds a run with another config: {difference}; give another folder")


def _check_held_out(config: TrainConfig, mix: Sequence[MixRow]) -> None:
    """Refuse a mix that learns what is validated on; the run's own splits are checked with its config."""
    for row in mix:
        if learnt := sorted(set(row.splits) & set(config.valid_splits)):
            raise ValueError(f"valid_splits={config.valid_splits}: {learnt} is learnt, by the mix's row {row.name}")


def _check_prompts(examples: pa.Table) -> None:
    """Refuse tasks that have neither prompts nor questions of their own, before anything starts."""
    unasked = examples.filter(pc.field("question").is_null())
    for task in pc.unique(unasked["task"]).to_pylist():
        question_for(task)


def _check_same_inputs(config: TrainConfig, cache: FeatureCache, examples_digest: str, mix: Sequence[MixRow]) -> None:
    spec = RunSpec.read(config.run)
    spec.recipe.require_same(cache.recipe, here=config.run, there=config.cache)
    if spec.examples_digest != examples_digest:
        raise ValueError(f"{config.run} learnt from other examples than {config.manifest} and {config.cache} hold now")
    _check_same_mix(config, mix)


def describe_run(config: TrainConfig, inputs: RunInputs, *, pending: Sequence[str]) -> None:
    """Write the run's config, LLM (if tiny) and, last, its description.

    Raises:
        ValueError: If the LLM, or the run to start from, does not fit the config.
    """
    cache = inputs.cache
    before = RunSpec.read(config.init_from) if config.init_from else None
    if before:
        _check_start(config, before, cache, pending)
    if config.llm == "tiny":
        _write_tiny_llm(config, before)
    widths = {name: stream.width for name, stream in cache.recipe.streams.items()}
    with local_llm(config.run, config.llm) as llm:
        aligner = AlignerConfig(
            speech_width=widths["speech"],
            audio_width=widths.get("audio"),
            llm_width=llm_width(llm),
            **vars(config.qformer),
        )
    frames = round(config.heard_seconds * FRAME_RATE_HZ)
    lora, dtype = config.lora, config.precision
    digest = inputs.examples.digest
    spec = RunSpec(cache.recipe, cache.encoders, config.llm, dtype, frames, digest, aligner, lora)
    if before:
        _check_sizes(config, spec, before)
    save_config(config, storage.join(config.run, "config.yaml"))
    if inputs.mix:
        save_mix(inputs.mix, storage.join(config.run, MIX))
    spec.write(config.run)


def _check_same_mix(config: TrainConfig, mix: Sequence[MixRow]) -> None:
    """Refuse another mix than a run was started with, whatever the file is called."""
    uri = storage.join(config.run, MIX)
    started = load_mix(uri) if storage.file_exists(uri) else ()
    here, there = ({f"row {number}": asdict(row) for number, row in enumerate(rows, 1)} for rows in (mix, started))
    difference = first_difference(here, there)
    if difference:
        raise ValueError(f"{config.run} was started with another mix than mix={config.mix}: {difference}")


def _check_start(config: TrainConfig, before: RunSpec, cache: FeatureCache, pending: Sequence[str]) -> None:
    cache.recipe.require_same(before.recipe, here=config.cache, there=config.init_from)
    if config.init_from not in pending and not complete_steps(config.init_from):
        raise ValueError(f"init_from={config.init_from}: that run has no complete checkpoint yet")
    if before.llm != config.llm:
        raise ValueError(f"init_from={config.init_from} trained on llm={before.llm}, not on llm={config.llm}")


def _check_sizes(config: TrainConfig, spec: RunSpec, before: RunSpec) -> None:
    """Refuse another aligner or LoRA than those of the run to start from; dropout may differ."""
    sizes = [
        {"qformer": {**asdict(run.aligner), "dropout": 0}, "lora": {**asdict(run.lora), "dropout": 0}}
        for run in (spec, before)
    ]
    difference = first_difference(sizes[0], sizes[1])
    if difference:
        raise ValueError(f"init_from={config.init_from} has another shape: {difference}")


def _write_tiny_llm(config: TrainConfig, before: RunSpec | None) -> None:
    """Put the tiny LLM into the run: the one of the stage before, or a new one made from the manifest's texts."""
    with local_llm(config.init_from, "tiny") if before else tempfile.TemporaryDirectory() as folder:
        if not before:
            write_tiny_llm(_texts(config.manifest), Path(folder))
        for path in sorted(Path(folder).iterdir()):
            storage.write_bytes(storage.join(config.run, "llm", path.name), path.read_bytes())


def _texts(manifest: str) -> Iterator[str]:
    for prompts in PROMPTS.values():
        yield from prompts
    for example in read_examples(manifest):
        yield from filter(None, (example.question, example.answer))


@contextmanager
def watched(configs: Sequence[TrainConfig], phase: Phase) -> Iterator[None]:
    """Show the current run's newest line of metrics.jsonl as the phase's state while the block runs, and all alarms."""
    ended = threading.Event()
    tails = {config.run: MetricsTail(config.run) for config in configs}
    newest = {run: lines[-1] for run, tail in tails.items() if (lines := tail.read())}
    told = {run: line["step"] for run, line in newest.items()}

    def show() -> None:
        before, done, note = 0, 0, "workers starting"
        for config in configs:
            run, name = config.run, config.run.partition("?")[0].rpartition("/")[2]
            for line in tails[run].read():
                newest[run] = line
                if line["step"] > told.get(run, 0):
                    told[run] = line["step"]
                    for alarm in line.get("alarms", ()):
                        print(f"{name}: step {line['step']}: {alarm}", file=sys.stderr)
            if run in newest:
                done, note = before + newest[run]["step"], f"{name}: {describe_line(newest[run])}"
            before += config.steps
        phase.update(done, note=note)

    def watch() -> None:
        while not ended.wait(LOOK_SECONDS if storage.is_local(configs[0].run) else LOOK_AFAR_SECONDS):
            with suppress(OSError):  # a slow store must not end the display, less so the job
                show()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(OSError):
            show()


def describe_line(line: Mapping[str, Any]) -> str:
    """Return a line of metrics in words: losses, held-out loss, speed, waiting, and skipped steps if any."""
    by_task = ", ".join(f"{task} {loss:.3f}" for task, loss in line["loss_by_task"].items())
    words = [f"loss {line['loss']:.3f}" + (f" ({by_task})" if len(line["loss_by_task"]) > 1 else "")]
    words += [f"held-out {line['valid_loss']:.3f}"] if "valid_loss" in line else []
    words += [f"{line['examples_per_second']:.3g} examples/s", f"{line['audio_hours_per_second']:.3g} h of audio/s"]
    words += [f"{line['data_wait_fraction']:.0%} waiting for data"]
    words += [f"{line['skipped_steps']} steps skipped"] if line["skipped_steps"] else []
    return ", ".join(words)


def _fit(configs: Sequence[TrainConfig], *, own_cluster: bool) -> None:
    first = configs[0]
    device = pick_device(first.device)
    use_gpu = device == "cuda"
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = actors_that_fit(nodes, {"CPU": first.threads, "GPU": int(use_gpu)})
    if (first.min_workers or first.workers) > room:
        short = f"workers={first.workers} with threads={first.threads} on {device} each"
        if own_cluster:
            raise ValueError(f"{short}: this machine has room for {room}")
        print(f"{short}: the cluster has room for {room} now; waiting for it to grow", file=sys.stderr)
    storage_path = storage.join(first.run, "ray")  # Ray's own records of a launch; those that count are the run's
    trainer = TorchTrainer(
        train_loop,  # type: ignore[arg-type]  # typed as if it could not return anything
        train_loop_config={"configs": list(configs)},
        torch_config=TorchConfig(timeout_s=math.ceil(first.collective_timeout_seconds)),
        scaling_config=ScalingConfig(
            num_workers=(first.min_workers, first.workers) if first.min_workers else first.workers,  # type: ignore[arg-type]  # those of the version before
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
        reason = trainer.fit().return_value  # type: ignore[attr-defined]  # those of the version before
    except TrainingFailedError as error:
        failures = getattr(error, "worker_failures", None)
        lacking = f"its workers did not start (no_workers_seconds={first.no_workers_seconds:g}): {error}"
        reason = _describe_failures(failures) if failures else lacking
        raise JobIncompleteError(f"{first.run}: training failed: {reason}") from error
    if reason:
        raise JobIncompleteError(reason)


def _describe_failures(failures: Mapping[int, Exception]) -> str:
    """Return, of workers' failures by rank, the one that the others may follow from: a death, or its own error."""

    def follows(rank: int) -> bool:
        text = str(failures[rank]).lower()
        return not isinstance(failures[rank], RayActorError) and ("gloo" in text or "nccl" in text)

    rank = min(failures, key=lambda rank: (follows(rank), rank))
    error = failures[rank]
    return f"worker {rank}: {describe_error(error) if isinstance(error, RayError) else error}"
