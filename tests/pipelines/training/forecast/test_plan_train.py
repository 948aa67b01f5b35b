"""Covers llm.sharding, pipelines.training.forecast.calibration, pipelines.training.forecast.config,
pipelines.training.forecast.cost, pipelines.training.forecast.sample, pipelines.training.forecast.sections.
"""

import itertools
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.flop_counter import FlopCounterMode

from cluster.unit_queue import Attempt
from llm.loading import load_llm
from llm.lora import add_lora
from llm.salmonn import Batch, Salmonn
from llm.settings import LoraSettings
from llm.sharding import layers_of, shard_llm
from llm.tiny import write_tiny_llm
from pipelines.batches.batch import read_texts
from pipelines.batches.order import micro_batches
from pipelines.cache.cost import read_encoding_cost
from pipelines.cache.plan import extend_plan, read_units
from pipelines.cache.read_config import ReadConfig
from pipelines.cache.reader import FeatureCache
from pipelines.cli import main
from pipelines.extraction.extract import ExtractReport
from pipelines.manifest.corpora.table import TableConfig, prepare_table
from pipelines.manifest.tables import read_clips
from pipelines.training.forecast.calibration import worker_examples
from pipelines.training.forecast.config import PlanTrainConfig
from pipelines.training.forecast.cost import MicroBatchSize, TrainCost
from pipelines.training.forecast.plan_train import plan_train
from pipelines.training.forecast.sections import TrainForecast
from pipelines.training.preflight import open_run
from pipelines.training.worker.loop import Tally, TrainWorker
from qformer.aligner import Aligner
from qformer.config import AlignerConfig
from tests.pipelines.builders import config_of, fill, make_worker, prepare_tones, train_here
from tests.toy import write_tone_corpus

TEXTS = ("low", "a high tone that fades", "low and then lower, as far as can be heard here", "high")
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


KEYS = {
    "llm": "tiny",
    "steps": 7,
    "batch_examples": 8,
    "micro_batch_examples": 2,
    "workers": 2,
    "heard_seconds": 2,
    "qformer.hidden_width": 32,
    "qformer.num_heads": 2,
    "qformer.ffn_width": 64,
    "valid_splits": "[test]",
    "valid_every": 2,
    "calibration_seconds": 0,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[str, str]:
    """A manifest of 12 tones of two tasks with answers of four lengths, a quarter held out, and its cache."""
    folder = tmp_path_factory.mktemp("corpus")
    table = write_tone_corpus(folder) / "table.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    for number, row in enumerate(rows):
        row |= {"text": TEXTS[number % 4], "task": "asr" if number % 3 else "audiocaption"}
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare_table(TableConfig(table=str(table), audio_root=str(folder / "audio"), out=str(folder / "m")))
    fill(folder / "c", str(folder / "m"), make_worker(folder / "c"))
    return str(folder / "m"), str(folder / "c")


def plan_of(corpus, run, **keys: Any) -> PlanTrainConfig:
    settings = vars(config_of(corpus, run)) | {"forecast_step_seconds": 0.5}
    return PlanTrainConfig(**(settings | keys))


def forecast_of(corpus, run, **keys: Any) -> TrainForecast:
    return plan_train(plan_of(corpus, run, **keys))


def test_lengths_are_those_of_every_example_that_an_epoch_asks(corpus, tmp_path):
    lengths = forecast_of(corpus, tmp_path / "run", steps=3, batch_examples=3, max_answer_tokens=9).lengths
    config = config_of(corpus, tmp_path / "real", max_answer_tokens=9)
    open_run(config, pending=[])
    worker = TrainWorker(config, 0, 1, torch.device("cpu"))
    texts = read_texts(worker.examples, [(0, index) for index in range(9)], prompt_seed=0)
    tokens = worker.model.aligner.num_tokens(100)
    counted = np.array([worker.model.count_tokens(*pair, num_audio_tokens=tokens) for pair in texts])
    assert (lengths.sampled, lengths.audio, lengths.longest) == (9, tokens, counted.max())
    assert (lengths.mean, lengths.p50) == pytest.approx((counted.mean(), np.median(counted)))
    assert lengths.p95 == pytest.approx(np.percentile(counted, 95))
    assert lengths.audio + lengths.prompt + lengths.answer == pytest.approx(lengths.mean)
    whole = [len(worker.model.tokenizer(answer).input_ids) + 1 for _, answer in texts]
    assert 0 < lengths.cut_fraction == sum(length > 9 for length in whole) / 9 < 1
    assert lengths.answer == pytest.approx(np.minimum(whole, 9).mean() - 1)


def test_what_is_heard_is_counted(corpus, tmp_path):
    hearing = forecast_of(corpus, tmp_path / "run", steps=6, batch_examples=3, heard_seconds=1.3).hearing
    examples = pq.read_table(f"{corpus[0]}/examples.parquet").to_pylist()
    train = [row for row in examples if row["split"] == "train"]
    seconds = {row["clip_id"]: row["seconds"] for row in pq.read_table(f"{corpus[0]}/clips.parquet").to_pylist()}
    by_task = {task: sum(row["task"] == task for row in train) for task in ("asr", "audiocaption")}
    assert (hearing.examples, hearing.epoch_examples, hearing.examples_by_task) == (9, 9, by_task)
    assert (hearing.epochs, hearing.clips, hearing.missing) == (2.0, 9, 0)
    assert hearing.audio_hours == pytest.approx(2 * sum(min(1.3, seconds[row["clip_id"]]) for row in train) / 3600)
    assert forecast_of(corpus, tmp_path / "run", steps=1, batch_examples=4).hearing.clips == 4


def test_mix_says_what_an_epoch_holds(corpus, tmp_path, capsys):
    rows = [{"task": "asr", "examples": 2}, {"task": "audiocaption", "weight": 2}]
    (tmp_path / "mix.yaml").write_text(yaml.safe_dump(rows))
    keys = {"mix": str(tmp_path / "mix.yaml"), "batch_examples": 8}
    once, often = (forecast_of(corpus, tmp_path / "run", steps=steps, **keys).hearing for steps in (1, 30))
    assert once.epoch_examples == 8 and once.examples_by_task == {"asr": 2, "audiocaption": 6}
    assert (once.clips, often.clips) == (5, 9)  # two of six, and then all of them in turn
    assert "an epoch is 8 examples" in capsys.readouterr().out


def test_bytes_and_rates_are_those_of_the_clips_that_are_heard(corpus, tmp_path):
    read = ReadConfig(verify_fraction=0.5)
    keys = {"steps": 3, "batch_examples": 3, "workers": 3, "micro_batch_examples": 1, "read": read}
    reading = forecast_of(corpus, tmp_path / "run", **keys).reading
    cache = FeatureCache(corpus[1], read)
    frames = np.minimum(cache.rows()["audio_frames"].to_numpy(), 100)
    ids = {
        row["clip_id"] for row in pq.read_table(f"{corpus[0]}/examples.parquet").to_pylist() if row["split"] == "train"
    }
    mine = np.array([clip in ids for clip in cache.rows()["clip_id"].to_pylist()])
    widths = {name: stream.width for name, stream in cache.recipe.streams.items()}
    heard = 2 * (100 * widths["speech"] + widths["audio"] * frames)
    whole = sum(cache.rows()[f"{name}_nbytes"].to_numpy() for name in widths)
    verified = cache.are_verified(np.arange(cache.num_clips))
    assert 0 < verified[mine].sum() < mine.sum() == 9
    assert reading.nbytes_per_example == pytest.approx(np.where(verified, whole, heard)[mine].mean())
    assert reading.megabytes_per_second == pytest.approx(reading.nbytes_per_example * 3 / 0.5 / 1e6)
    assert reading.worker_megabytes_per_second == pytest.approx(reading.megabytes_per_second / 3)


def test_order_by_shards_is_planned_with_the_batches_that_training_begins_with(corpus, tmp_path):
    keys = {"order": "shards", "shard_window": 1, "batch_examples": 3, "micro_batch_examples": 3, "steps": 1}
    plan = forecast_of(corpus, tmp_path / "run", **keys)
    config = config_of(corpus, tmp_path / "real", **keys)
    open_run(config, pending=[])
    worker = TrainWorker(config, 0, 1, torch.device("cpu"))
    assert plan.reading.nbytes_per_example == pytest.approx(worker.read_batch(0).nbytes / 3)


def small_model(folder: Path, precision: str, device: str, lora: LoraSettings | None = None) -> Salmonn:
    llm, tokenizer = load_llm(folder, precision=precision, device=device)
    aligner = AlignerConfig(
        speech_width=128, audio_width=96, llm_width=256, hidden_width=64, num_heads=4, ffn_width=128
    )
    return Salmonn(Aligner(aligner), add_lora(llm, lora or LoraSettings()), tokenizer).to(device).train()


@pytest.fixture(scope="module")
def small_llm(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llm")
    write_tiny_llm(TEXTS, folder, width=256, num_layers=4)
    return folder


def kept_nbytes(forward: Callable[[], torch.Tensor], model: Salmonn) -> int:
    """The bytes of all tensors, weights apart, that a forward pass keeps for the backward one."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = forward()
    assert loss.requires_grad
    return sum(storage.nbytes() for place, storage in kept.items() if place not in weights)


@pytest.mark.parametrize(
    ("precision", "frames", "again", "lora"),
    [
        ("float32", 300, False, LoraSettings()),
        ("bfloat16", 1500, False, LoraSettings()),
        ("float32", 300, True, LoraSettings()),
        ("float32", 300, False, LoraSettings(dropout=0.0)),
        ("bfloat16", 300, False, LoraSettings(dropout=0.0)),
        ("float32", 300, False, LoraSettings(target_modules=ALL_LINEAR)),
        ("bfloat16", 300, False, LoraSettings(target_modules=ALL_LINEAR)),
        ("float32", 300, False, LoraSettings(target_modules=ALL_LINEAR, dropout=0.0)),
        ("bfloat16", 300, False, LoraSettings(target_modules=ALL_LINEAR, dropout=0.0)),
    ],
)
def test_memory_and_operations_follow_from_shapes(small_llm, precision, frames, again, lora):
    model = small_model(small_llm, precision, "cpu", lora)
    questions, answers = ["What is heard?"] * 4, ["low " * 10, "high", "a " * 40, "x" * 70]
    batch = Batch(torch.randn(4, frames, 128), torch.randn(4, frames - 4, 96), None, questions, answers)
    tokens = model.aligner.num_tokens(frames)
    targets = np.array([len(model.tokenizer(answer).input_ids) + 1 for answer in answers])
    positions = np.array(
        [model.count_tokens(*pair, num_audio_tokens=tokens) for pair in zip(questions, answers, strict=True)]
    )
    if again:
        model.llm.activation_checkpointing_enable()
    kept = kept_nbytes(lambda: model.loss(batch).total, model)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # others are not counted on a CPU
        model.loss(batch).total.backward()
    shapes = small_model(small_llm, precision, "meta", lora)
    cost = TrainCost(shapes, precision, gradient_checkpointing=again, device="cpu")
    estimate = cost.kept_nbytes(MicroBatchSize(int(positions.sum()), int(targets.sum()), 4 * frames, 4 * tokens))
    if again:  # what the layer that is computed again keeps is there only meanwhile
        at_once = TrainCost(shapes, precision, gradient_checkpointing=False, device="cpu")
        estimate -= at_once.kept_nbytes(MicroBatchSize(int(positions.sum()), 0, 0, 0)) // 4
    assert estimate == pytest.approx(kept, rel=0.1)
    assert 4 * cost.mean_flop(positions, targets, np.array([tokens] * 4)) == pytest.approx(
        counter.get_total_flops(), rel=0.07
    )
    assert cost.llm_nbytes() == sum(weight.nbytes for weight in model.parameters() if not weight.requires_grad)
    assert cost.trainable_nbytes() == sum(weight.nbytes for weight in model.trainable_parameters().values())


def test_dropout_keeps_a_byte_per_value_on_a_gpu_and_four_on_a_cpu(small_llm):
    model, size = (
        small_model(small_llm, "bfloat16", "meta"),
        MicroBatchSize(positions=10, targets=0, frames=0, audio_tokens=0),
    )
    gpu, cpu = (TrainCost(model, "bfloat16", gradient_checkpointing=False, device=device) for device in ("auto", "cpu"))
    assert cpu.kept_nbytes(size) - gpu.kept_nbytes(size) == 4 * 10 * 2 * 256 * (4 - 1)
    assert gpu.kept_formula.startswith(f"4 layers · T · ((8 + 4b) H + 3b F + LoRA's {2 * 256 * 5:,})")


def test_spread_layers_take_their_share_and_three_of_them_whole(small_llm, tmp_path):
    model = small_model(small_llm, "float32", "cpu")
    cost = TrainCost(model, "float32", gradient_checkpointing=False)
    layers = [sum(w.nbytes for w in layer.parameters() if not w.requires_grad) for layer in layers_of(model.llm)]
    gathered = cost.llm_nbytes(shards=4) - (cost.llm_nbytes() - sum(layers) + sum(layers) // 4)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    try:
        shard_llm(model.llm, torch.device("cpu"), world=4)
        cpu = [ProfilerActivity.CPU]
        with profile(activities=cpu, profile_memory=True, acc_events=True) as profiler, torch.no_grad():
            model.llm(input_ids=torch.tensor([[1, 2, 3]]))
    finally:
        dist.destroy_process_group()
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    held = [event["args"]["Total Allocated"] for event in events if event["name"] == "[memory]"]
    assert max(held) - held[0] == pytest.approx(gathered, rel=0.05)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_memory_of_a_quantised_llm_is_that_of_its_packed_weights_and_scales(small_llm, precision):
    pytest.importorskip("bitsandbytes")
    cost = TrainCost(small_model(small_llm, precision, "meta"), precision, gradient_checkpointing=False)
    weights = list(load_llm(small_llm, precision=precision)[0].parameters())
    scales = [weight.SCB for weight in weights if hasattr(weight, "SCB")]
    states = [weight.quant_state for weight in weights if hasattr(weight, "quant_state")]
    scales += [scale for state in states for scale in (state.absmax, state.state2.absmax)]
    assert scales and cost.llm_nbytes() == pytest.approx(sum(part.nbytes for part in (*weights, *scales)), rel=1e-3)


def test_memory_names_what_a_worker_holds(corpus, tmp_path):
    memory = forecast_of(corpus, tmp_path / "run", workers=2, micro_batch_examples=2).memory
    config = config_of(corpus, tmp_path / "real")
    open_run(config, pending=[])
    worker = TrainWorker(config, 0, 1, torch.device("cpu"))
    worker.train_step(worker.read_batch(0), Tally.of(worker.tasks))
    weights = worker.parameters.values()
    moments = [value for state in worker.optimizer.state.values() for value in state.values() if value.ndim]
    assert memory.weights == sum(weight.nbytes for weight in weights)
    assert memory.optimizer == sum(moment.nbytes for moment in moments)
    assert memory.gradients == memory.weights + worker.sums.nbytes - 3 * 8 * len(worker.tasks)
    assert memory.device == memory.llm + memory.weights + memory.gradients + memory.optimizer + memory.kept
    held = worker.read_batch(0).mine
    nbytes = sum(part.batch.speech.nbytes + part.batch.audio.nbytes for part in held)
    assert memory.read_ahead == pytest.approx(3 * nbytes / 2, rel=0.2)  # two ahead and the one computed, half of each
    assert memory.measured is None or torch.cuda.is_available()


def test_trials_over_one_llm_take_its_memory_once(corpus, tmp_path, capsys):
    one, eight = (forecast_of(corpus, tmp_path / "run", trials_per_process=count).memory for count in (1, 8))
    own = one.weights + one.gradients + one.optimizer
    assert (eight.llm, eight.kept, eight.tables) == (one.llm, one.kept, one.tables)
    assert eight.device == one.device + 7 * own and eight.read_ahead == 8 * one.read_ahead
    assert "on the device of 8 trials by turns" in capsys.readouterr().out


def test_step_is_measured_on_a_workers_share_and_nothing_is_written(corpus, tmp_path, capsys):
    run = tmp_path / "run"
    words = [f"{key}={value}" for key, value in KEYS.items()]
    words += ["min_workers=2", "json=true"]
    assert main(["plan", "train", f"manifest={corpus[0]}", f"cache={corpus[1]}", f"run={run}", *words]) == 0
    forecast = json.loads(capsys.readouterr().out)
    duration, step = forecast["duration"], forecast["duration"]["step"]
    assert not run.exists()
    assert step["measured_steps"] >= 1 and step["read_seconds"] > 0
    assert duration["step_seconds"] == max(step["compute_seconds"], step["read_seconds"])
    assert duration["examples_per_second"] == pytest.approx(8 / duration["step_seconds"])
    validation = 4 * 3 / 8 / 2 * step["compute_seconds"] / 3600  # after steps 2, 4, 6, 7: three examples, forward alone
    assert duration["validation_hours"] == pytest.approx(validation)
    assert duration["device_hours"] == pytest.approx(2 * (7 * duration["step_seconds"] / 3600 + validation))


def test_calibration_without_memory_for_it_leaves_what_is_known_and_says_how_to_go_on(
    corpus, tmp_path, monkeypatch, capsys
):
    def train_step(*_: Any) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(TrainWorker, "train_step", train_step)
    words = [f"manifest={corpus[0]}", f"cache={corpus[1]}", f"run={tmp_path}/run"]
    assert main(["plan", "train", *words, *(f"{key}={value}" for key, value in KEYS.items())]) == 2
    *table, error = capsys.readouterr().err.splitlines()
    names = [line.split()[0] for line in table if not line.startswith(" ")]
    assert names == ["examples", "hears", "positions", "memory"]
    assert "ran out of memory" in error and "device_teraflops=…" in error


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_workers_share_is_the_largest_that_examples_of_one_length_are_dealt_in(corpus, size):
    for batch, workers in itertools.product(range(1, 50), range(1, 7)):
        parts = micro_batches([(0, place) for place in range(batch)], [1] * batch, size=size)
        largest = max(sum(map(len, parts[rank::workers])) for rank in range(workers))
        config = config_of(corpus, "run", batch_examples=batch, micro_batch_examples=size, workers=workers)
        assert worker_examples(config) == largest
        assert -(-largest // size) == len(parts[::workers])  # as many micro-batches where it is measured alone


def test_device_that_is_not_here_takes_its_share_of_the_operations(corpus, tmp_path):
    keys = {"forecast_step_seconds": 0.0, "batch_examples": 10, "micro_batch_examples": 2}
    one = forecast_of(corpus, tmp_path / "run", device_teraflops=0.001, workers=1, **keys)
    many = forecast_of(corpus, tmp_path / "run", device_teraflops=0.002, workers=4, **keys)
    assert many.duration.step_seconds == pytest.approx(one.duration.step_seconds / 2 * 4 / 10)  # two of five parts
    assert (one.duration.teraflops, many.duration.teraflops) == pytest.approx((0.001, 0.002))
    assert many.duration.step.measured_steps == 0 and many.duration.hours == many.duration.device_hours / 4


def test_run_that_has_begun_is_planned_to_its_end_with_its_own_weights(corpus, tmp_path):
    config = config_of(corpus, tmp_path / "run")
    train_here(config)
    (tmp_path / "run" / "checkpoints" / "000006" / "state.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    duration = forecast_of(corpus, tmp_path / "run").duration
    assert (duration.steps, duration.steps_done, duration.hours) == (6, 4, 2 * 0.5 / 3600)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_stage_is_planned_before_the_one_that_it_starts_from_has_begun_or_is_done(corpus, tmp_path, capsys):
    alone = forecast_of(corpus, tmp_path / "alone")
    assert not capsys.readouterr().err
    keys = {"runs": str(tmp_path), "after": "stage1"}
    assert forecast_of(corpus, tmp_path / "stage2", **keys) == alone
    assert f"init_from={tmp_path}/stage1: no run there yet" in capsys.readouterr().err
    open_run(config_of(corpus, tmp_path / "stage1"), pending=[])
    assert forecast_of(corpus, tmp_path / "stage2", **keys) == alone
    assert not capsys.readouterr().err


def test_cache_is_held_against_encoding_in_each_step(corpus, tmp_path, capsys):
    assert forecast_of(corpus, tmp_path / "run").caching is None
    assert "clips_per_second=" in capsys.readouterr().out
    keys = {"steps": 12, "batch_examples": 3, "clips_per_second": 2.0, "workers": 2}
    caching = forecast_of(corpus, tmp_path / "run", **keys).caching
    online, once, training = (hours / 3600 for hours in (36 / 2, 9 / 2, 12 * 0.5 * 2))
    assert (caching.online_hours, caching.extract_hours) == pytest.approx((online, once))
    assert caching.break_even_epochs == pytest.approx(1.0)  # every clip has one example
    assert caching.speedup == pytest.approx((training + online) / (training + once))


def test_what_encoding_costs_is_read_from_the_jobs_that_filled_the_cache(tmp_path):
    manifest, cache = prepare_tones(tmp_path, num_clips=6), tmp_path / "c"
    worker, report = make_worker(cache), ExtractReport()
    extend_plan(str(cache), read_clips(manifest), recipe=worker.config.recipe, shard_nbytes=10**9)
    (stats,) = [worker.run(unit, Attempt()) for unit in read_units(str(cache))]
    report.add(stats)
    (cache / "jobs").mkdir()
    for name in ("first", "second"):  # one that did nothing beside one that did all
        (cache / "jobs" / f"{name}.json").write_text(json.dumps({"report": asdict(report)}))
        report = ExtractReport()
    cost = read_encoding_cost(str(cache))
    encoding = sum(stats.parts[part] for part in ("mel", "whisper", "fbank", "beats"))
    assert (cost.clips, cost.devices) == (6, stats.device)
    assert (cost.encode_seconds, cost.extract_seconds) == pytest.approx((encoding / 6, stats.seconds / 6))
    assert cost.encode_seconds < cost.extract_seconds
    caching = forecast_of((manifest, str(cache)), tmp_path / "run", splits=[], batch_examples=6, steps=1).caching
    assert caching.break_even_epochs == pytest.approx(stats.seconds / encoding)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["llm=absent"], "absent: no language model here"),
        (["splits=[dev]"], "splits found: test, train"),
        (["cache=absent"], "no feature cache there"),
        (["steps=0"], "steps=0: must be 1 or more"),
        (["run="], "run=… is needed"),
        (["valid_splits=[dev]"], "splits found: test, train"),
        (["calibration_seconds=-1"], "calibration_seconds=-1.0: must be 0 or more"),
        (["device_teraflops=1", "forecast_step_seconds=1"], "device_teraflops=1.0: means nothing"),
        (["shard_llm=true"], "device_teraflops=… or forecast_step_seconds=…"),
        (["step_seconds=1"], "unknown key step_seconds"),
    ],
)
def test_wrong_keys_give_the_line_that_training_gives(corpus, tmp_path, keys, message, capsys):
    words = [f"manifest={corpus[0]}", f"cache={corpus[1]}", f"run={tmp_path}/run"]
    assert main(["plan", "train", *words, *(f"{key}={value}" for key, value in KEYS.items()), *keys]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def test_run_of_another_config_is_refused(corpus, tmp_path):
    open_run(config_of(corpus, tmp_path / "run"), pending=[])
    with pytest.raises(ValueError, match="another config: seed is 0 there and 1 here"):
        plan_train(plan_of(corpus, tmp_path / "run", seed=1))
