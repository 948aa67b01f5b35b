"""`salmonn plan train`: what a run will take, before it runs. Writes nothing into the run's folder."""

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace

import numpy as np
import pyarrow.compute as pc
import torch

from encoders.features import STORED_TYPES
from pipelines.batches.example_set import tasks_of
from pipelines.cache.cost import EncodingCost, break_even_epochs, read_encoding_cost
from pipelines.errors import UserError
from pipelines.runs.folder import complete_steps, is_described
from pipelines.runs.model import build_model
from pipelines.runs.spec import RunSpec
from pipelines.training.config import TrainConfig, with_full_paths
from pipelines.training.data import RunData
from pipelines.training.forecast.calibration import StepTime, measure_step, worker_examples
from pipelines.training.forecast.config import WITHOUT_CALIBRATION, PlanTrainConfig
from pipelines.training.forecast.cost import TrainCost
from pipelines.training.forecast.sample import Sample, count_clips, count_epoch, draw_sample
from pipelines.training.forecast.sections import (
    Caching,
    Duration,
    Hearing,
    Lengths,
    Memory,
    Reading,
    TrainForecast,
    table_of,
)
from pipelines.training.preflight import RunInputs, check_run, describe_run


def plan_train(plan: PlanTrainConfig) -> TrainForecast:
    """Print what `salmonn train` with the same keys would take.

    Raises:
        UserError: As `salmonn train` before it starts; or if measuring a step runs out of memory, once what is known
            without it is printed.
    """
    config = with_full_paths(TrainConfig(**{field.name: getattr(plan, field.name) for field in fields(TrainConfig)}))
    inputs = check_run(config)
    mixture = inputs.examples.mixture
    if mixture and not plan.json:
        print(f"{config.run}: {mixture.describe()}")
    hearing = _hearing(config, inputs)
    validated = _validated_batches(config, inputs)
    with _described(config, inputs) as run:
        spec = RunSpec.read(run)
        model = build_model(spec, run, device="meta")
        model.max_answer_tokens = config.max_answer_tokens
        sample = draw_sample(inputs.examples, inputs.index, model, config, heard=spec.heard)
        again = config.gradient_checkpointing
        cost = TrainCost(model, spec.dtype, gradient_checkpointing=again, device=config.device)
        lengths = _lengths(sample)
        memory = _memory(config, inputs, spec, cost, sample, trials=plan.trials_per_process)
        del inputs  # the calibration has its own
        flop = worker_examples(config) * cost.mean_flop(sample.positions, sample.targets, sample.audio_tokens)
        try:
            step = _step_time(plan, replace(config, run=run), flop)
        except torch.OutOfMemoryError:
            print(table_of([*hearing.lines(), *lengths.lines(), *memory.lines()]), file=sys.stderr)
            raise UserError(f"the calibration ran out of memory here; {WITHOUT_CALIBRATION}") from None
    encoding = _encoding_cost(plan)
    forecast = TrainForecast(
        hearing=hearing,
        lengths=lengths,
        reading=_reading(config, sample, step),
        memory=replace(memory, measured=step.peak_nbytes),
        duration=_duration(config, step, flop, validated),
        caching=_caching(config, hearing, step, encoding) if encoding else None,
    )
    print(json.dumps(asdict(forecast), indent=2) if plan.json else forecast.table())
    return forecast


def _hearing(config: TrainConfig, inputs: RunInputs) -> Hearing:
    examples, heard = inputs.examples, config.steps * config.batch_examples
    epoch = count_epoch(examples, inputs.index, heard_seconds=config.heard_seconds)
    return Hearing(
        examples=len(examples),
        missing=examples.missing.num_rows,
        examples_by_task=epoch.examples_by_task,
        epoch_examples=epoch.examples,
        epochs=heard / epoch.examples,
        clips=count_clips(examples, places=heard, seed=config.seed),
        audio_hours=heard / epoch.examples * epoch.audio_hours,
    )


def _steps_done(config: TrainConfig) -> int:
    return (complete_steps(config.run) or [0])[-1]


def _validated_batches(config: TrainConfig, inputs: RunInputs) -> float:
    """Return how many batches are validated on in what is left of the run; after its last step it is in any case."""
    done, every = _steps_done(config), config.valid_every
    if not every or done == config.steps:
        return 0.0
    times = config.steps // every - done // every + (config.steps % every > 0)
    held_out = RunData().load_valid_examples(config, inputs.index, tasks_of(inputs.examples))
    return times * len(held_out) / config.batch_examples


@contextmanager
def _described(config: TrainConfig, inputs: RunInputs) -> Iterator[str]:
    """Yield the run's folder if it has begun, or one that stands for it and goes away."""
    if is_described(config.run):
        yield config.run
        return
    if config.init_from and not is_described(config.init_from):
        print(f"init_from={config.init_from}: no run there yet; planned without it", file=sys.stderr)
        config = replace(config, init_from="")
    with tempfile.TemporaryDirectory(prefix="salmonn-") as folder:
        describe_run(replace(config, run=folder), inputs, pending=[config.init_from])
        yield folder


def _memory(
    config: TrainConfig, inputs: RunInputs, spec: RunSpec, cost: TrainCost, sample: Sample, *, trials: int
) -> Memory:
    llm = cost.llm_nbytes(shards=config.workers if config.shard_llm else 1)
    weights, kept = trials * cost.trainable_nbytes(), max(map(cost.kept_nbytes, sample.parts))
    table, examples = inputs.index.table, inputs.examples
    values = sum(
        min(spec.frames, pc.max(table[f"{name}_frames"]).as_py()) * stream.width
        for name, stream in spec.recipe.streams.items()
    )
    held = worker_examples(config) * values * STORED_TYPES[spec.recipe.codec].value_nbytes
    return Memory(
        precision=spec.dtype,
        llm=llm,
        weights=weights,
        gradients=3 * weights,  # float32, and float64 where they add up
        optimizer=2 * weights,
        kept=kept,
        kept_formula=cost.kept_formula,
        device=llm + 6 * weights + kept,
        measured=None,
        trials=trials,
        read_ahead=trials * (config.read.ahead_steps + 1) * held,  # and the one that is computed
        tables=table.nbytes + examples.table.nbytes + examples.positions.nbytes,
    )


def _step_time(plan: PlanTrainConfig, config: TrainConfig, flop: float) -> StepTime:
    """Return a step's time as it is stated, or follows from a worker's operations, or is measured."""
    if plan.forecast_step_seconds:
        return StepTime(plan.forecast_step_seconds, None, 0, "as stated", None)
    if plan.device_teraflops:
        return StepTime(flop / (plan.device_teraflops * 1e12), None, 0, "from device_teraflops", None)
    return measure_step(config, seconds=plan.calibration_seconds)


def _lengths(sample: Sample) -> Lengths:
    answer, audio = float(sample.targets.mean()) - 1, float(sample.audio_tokens.mean())  # the last token is not read
    return Lengths(
        sampled=len(sample.positions),
        audio=audio,
        prompt=float(sample.positions.mean()) - audio - answer,
        answer=answer,
        mean=float(sample.positions.mean()),
        p50=float(np.percentile(sample.positions, 50)),
        p95=float(np.percentile(sample.positions, 95)),
        longest=int(sample.positions.max()),
        cut_fraction=float(sample.is_cut.mean()),
    )


def _reading(config: TrainConfig, sample: Sample, step: StepTime) -> Reading:
    nbytes = float(sample.nbytes.mean())
    per_second = nbytes / 1e6 / step.compute_seconds
    return Reading(nbytes, worker_examples(config) * per_second, config.batch_examples * per_second)


def _duration(config: TrainConfig, step: StepTime, flop: float, validated: float) -> Duration:
    done = _steps_done(config)
    forward = 1 / (3 if config.gradient_checkpointing else 2)  # backward goes through as many products
    validation_hours = validated * forward * step.compute_seconds / 3600
    hours = (config.steps - done) * step.seconds / 3600 + validation_hours
    return Duration(
        steps=config.steps,
        steps_done=done,
        batch_examples=config.batch_examples,
        workers=config.workers,
        step=step,
        step_seconds=step.seconds,
        data_wait_fraction=1 - step.compute_seconds / step.seconds,
        teraflops=flop / step.compute_seconds / 1e12,
        examples_per_second=config.batch_examples / step.seconds,
        hours=hours,
        validation_hours=validation_hours,
        device_hours=hours * config.workers,
    )


def _encoding_cost(plan: PlanTrainConfig) -> EncodingCost | None:
    if plan.clips_per_second:
        return EncodingCost(0, 1 / plan.clips_per_second, 1 / plan.clips_per_second, "as stated")
    return read_encoding_cost(plan.cache)


def _caching(config: TrainConfig, hearing: Hearing, step: StepTime, cost: EncodingCost) -> Caching:
    online, once = cost.online_hours(config.steps * config.batch_examples), cost.extract_hours(hearing.clips)
    encoding, training = cost.online_hours(hearing.clips), config.steps * step.seconds * config.workers / 3600
    return Caching(
        clips_per_second=1 / cost.encode_seconds,
        devices=cost.devices,
        online_hours=online,
        extract_hours=once,
        break_even_epochs=break_even_epochs(encoding, once - encoding, hearing.epoch_examples / hearing.clips),
        speedup=(training + online) / (training + once),
    )
