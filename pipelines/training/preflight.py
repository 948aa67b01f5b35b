"""What is checked before a run asks for a cluster, and how a run is described once."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from cluster.apart import call_in_subprocess
from encoders.features import FRAME_RATE_HZ, Hear
from llm.identity import llm_identity
from llm.prompts import question_for
from pipelines import storage
from pipelines.batches.example_set import ExampleSet, tasks_of
from pipelines.batches.mix import MixRow, load_mix, save_mix
from pipelines.cache.clip_index import ClipIndex
from pipelines.errors import UserError
from pipelines.interface.config import read_saved_config, save_config, to_yaml
from pipelines.interface.differences import first_difference
from pipelines.interface.version import product_version
from pipelines.interface.words import counted
from pipelines.runs.folder import MIX, complete_steps, is_described
from pipelines.runs.spec import RunSpec, copy_llm, fetched, local_llm, require_heard, require_same_llm, require_silence
from pipelines.training.config import FREE_KEYS, TrainConfig
from pipelines.training.data import RunData
from qformer.config import CLIP_SECONDS, AlignerConfig


@dataclass(frozen=True)
class RunInputs:
    """What a run learns from."""

    index: ClipIndex
    examples: ExampleSet
    mix: tuple[MixRow, ...]


def open_run(config: TrainConfig, *, pending: Sequence[str], data: RunData | None = None) -> ExampleSet:
    """Check everything that can be checked before a cluster is asked for; return the examples to learn from."""
    inputs = check_run(config, data)
    if is_described(config.run):
        _continue_run(config)
    else:
        describe_run(config, inputs, pending=pending)
    missing = inputs.examples.missing
    if missing.num_rows:
        uri = storage.join(config.run, "missing.parquet")
        storage.write_table(uri, missing)
        print(f"{config.run}: {counted(missing.num_rows, 'example')} left out, {uri} lists them: no features")
    longer = _count_longer(inputs, config.heard_seconds)
    if longer:
        whose = f"{longer} of {counted(len(inputs.examples), 'example')}"
        print(f"{config.run}: of {whose} only the first heard_seconds={config.heard_seconds:g} are heard")
    if inputs.examples.mixture:
        print(f"{config.run}: {inputs.examples.mixture.describe()}")
    return inputs.examples


def _continue_run(config: TrainConfig) -> None:
    """Say what is other than when the run began, and record a larger number of steps."""
    uri, version = storage.join(config.run, "config.yaml"), RunSpec.read(config.run).version
    steps = read_saved_config(uri)["steps"]
    if version != product_version():
        begun = f"salmonn {version}" if version else "an earlier version"
        print(f"{config.run}: begun by {begun}, goes on with salmonn {product_version()}")
    if steps < config.steps:
        print(f"{config.run}: goes on to {config.steps} steps; it was a run of {steps}")
        save_config(config, uri)


def _count_longer(inputs: RunInputs, seconds: float) -> int:
    """Count examples whose clips are longer than this; 50 ms more are no loss."""
    lengths = inputs.index.seconds[inputs.examples.positions]
    return int((lengths > seconds + 0.05).sum())


def check_run(config: TrainConfig, data: RunData | None = None) -> RunInputs:
    """Check what a run learns from and, if it is to continue, that it goes on as it began; writes nothing.

    Raises:
        UserError: If the data or the run's folder do not fit the config.
    """
    data = data or RunData()
    _check_run_folder(config)
    index = data.open_index(config.cache, config.read)
    mix = load_mix(config.mix) if config.mix else ()
    examples = data.load_train_examples(config, index, mix)
    data.require_named(config)
    _check_prompts(examples.table)
    if config.valid_every:
        _check_held_out(config, mix)
        data.load_valid_examples(config, index, tasks_of(examples))
    if is_described(config.run):
        _check_same_inputs(config, index, examples.digest, mix)
    return RunInputs(index, examples, mix)


def _check_run_folder(config: TrainConfig) -> None:
    uri = storage.join(config.run, "config.yaml")
    if not storage.file_exists(uri):
        return
    there = read_saved_config(uri)
    here: dict[str, Any] = yaml.safe_load(to_yaml(config))
    kept = [{key: value for key, value in values.items() if key not in FREE_KEYS} for values in (here, there)]
    steps = there.get("steps", config.steps)
    if config.steps < steps:
        raise UserError(f"steps={config.steps}: {config.run} is a run of {steps} steps; so many or more continue it")
    difference = first_difference(kept[0] | {"steps": steps}, kept[1])
    if difference:
        raise UserError(f"{config.run} holds a run with another config: {difference}; give another folder")


def _check_held_out(config: TrainConfig, mix: Sequence[MixRow]) -> None:
    """Refuse a mix that learns what is validated on; the run's own splits are checked with its config."""
    for row in mix:
        if learnt := sorted(set(row.splits) & set(config.valid_splits)):
            raise UserError(f"valid_splits={config.valid_splits}: {learnt} is learnt, by the mix's row {row.name}")


def _check_prompts(examples: pa.Table) -> None:
    """Refuse tasks that have neither prompts nor questions of their own, before anything starts."""
    unasked = examples.filter(pc.field("question").is_null())
    for task in pc.unique(unasked["task"]).to_pylist():
        question_for(task)


def _check_same_inputs(config: TrainConfig, index: ClipIndex, examples_digest: str, mix: Sequence[MixRow]) -> None:
    spec = RunSpec.read(config.run)
    require_heard(spec, index.recipe, run=config.run, cache=config.cache)
    if spec.examples_digest != examples_digest:
        raise UserError(f"{config.run} learnt from other examples than {config.manifest} and {config.cache} hold now")
    _check_same_mix(config, mix)


def describe_run(config: TrainConfig, inputs: RunInputs, *, pending: Sequence[str]) -> None:
    """Write the run's config, LLM (if tiny) and, last, its description.

    Raises:
        UserError: If the LLM, or the run to start from, does not fit the config.
    """
    index = inputs.index
    before = RunSpec.read(config.init_from) if config.init_from else None
    hear = config.hear or (before.hear if before else "all")
    require_silence(hear, index.recipe, run=config.run, cache=config.cache)
    _check_heard_seconds(config, hear, index)
    if before:
        _check_start(config, replace(before, hear=hear), index, pending)
    widths = {name: stream.width for name, stream in index.recipe.streams.items()}
    aligner = AlignerConfig(
        speech_width=widths["speech"],
        audio_width=widths.get("audio"),
        llm_width=_prepare_llm(config, before),
        **vars(config.qformer),
    )
    frames = round(config.heard_seconds * FRAME_RATE_HZ)
    lora, dtype = config.lora, config.precision
    digest = inputs.examples.digest
    with local_llm(config.run, config.llm) as folder:
        identity = llm_identity(folder)
    spec = RunSpec(
        recipe=index.recipe.as_heard(hear),
        encoders=index.encoders,
        llm=config.llm,
        dtype=dtype,
        frames=frames,
        examples_digest=digest,
        aligner=aligner,
        lora=lora,
        version=product_version(),
        llm_identity=identity,
        hear=hear,
    )
    if before:
        _check_sizes(config, spec, before)
    save_config(config, storage.join(config.run, "config.yaml"))
    if inputs.mix:
        save_mix(inputs.mix, storage.join(config.run, MIX))
    spec.write(config.run)


def _check_heard_seconds(config: TrainConfig, hear: Hear, index: ClipIndex) -> None:
    most = index.recipe.max_clip_seconds
    if config.heard_seconds > most:
        raise UserError(
            f"heard_seconds={config.heard_seconds:g}: {config.cache} holds {most:g} s of a clip at most; "
            "extract with max_clip_seconds=… holds more"
        )
    if hear == "all" and config.heard_seconds > CLIP_SECONDS:  # as the run before
        raise UserError(
            f"heard_seconds={config.heard_seconds:g}: {config.init_from} hears {CLIP_SECONDS} s of every clip "
            "(hear=all); give hear=clip to hear more"
        )


def _check_same_mix(config: TrainConfig, mix: Sequence[MixRow]) -> None:
    """Refuse another mix than a run was started with, whatever the file is called."""
    uri = storage.join(config.run, MIX)
    started = load_mix(uri) if storage.file_exists(uri) else ()
    here, there = ({f"row {number}": asdict(row) for number, row in enumerate(rows, 1)} for rows in (mix, started))
    difference = first_difference(here, there)
    if difference:
        raise UserError(f"{config.run} was started with another mix than mix={config.mix}: {difference}")


def _check_start(config: TrainConfig, before: RunSpec, index: ClipIndex, pending: Sequence[str]) -> None:
    require_heard(before, index.recipe, run=config.init_from, cache=config.cache)
    if config.init_from not in pending and not complete_steps(config.init_from):
        raise UserError(f"init_from={config.init_from}: that run has no complete checkpoint yet")
    if before.llm == config.llm:
        return
    if "tiny" in (before.llm, config.llm) or not before.llm_identity:
        raise UserError(f"init_from={config.init_from} trained on llm={before.llm}, not on llm={config.llm}")
    require_same_llm(before.llm_identity, llm_identity(config.llm), of=f"init_from={config.init_from}", llm=config.llm)


def _check_sizes(config: TrainConfig, spec: RunSpec, before: RunSpec) -> None:
    """Refuse an aligner or LoRA of other sizes than the run's to start from; dropout may differ."""
    sizes = [
        {"qformer": {**asdict(run.aligner), "dropout": 0}, "lora": {**asdict(run.lora), "dropout": 0}}
        for run in (spec, before)
    ]
    difference = first_difference(sizes[0], sizes[1])
    if difference:
        raise UserError(f"init_from={config.init_from} has another shape: {difference}")


def _prepare_llm(config: TrainConfig, before: RunSpec | None) -> int:
    """Return the width of the LLM; the tiny one is put into the run: that of the run before, or a new one."""
    if not before:
        keys = {"run": config.run, "llm": config.llm, "manifest": config.manifest}
        width: int = call_in_subprocess("pipelines.training.base_llm", "prepare_llm", heavy="torch", **keys)
        return width
    if config.llm == "tiny":
        with fetched(config.init_from, "llm") as folder:
            copy_llm(folder / "llm", config.run)
    return before.aligner.llm_width
