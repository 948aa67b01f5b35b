"""Steps of one worker, its checkpoints, what is skipped, held out and kept.

Covers pipelines.training.worker.step_sums, pipelines.training.worker.validation.
"""

import itertools
import json
import shutil
import threading
from dataclasses import replace

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from encoders.features import FRAME_RATE_HZ, Heard
from llm.settings import LoraSettings
from pipelines import storage
from pipelines.batches.batch import read_batch
from pipelines.batches.example_set import load_examples
from pipelines.cache.read_config import ReadConfig
from pipelines.cache.reader import FeatureCache
from pipelines.errors import JobIncompleteError
from pipelines.runs.checkpoint import load_run
from pipelines.runs.folder import best_checkpoint, complete_steps, find_checkpoint
from pipelines.runs.metrics import read_metrics
from pipelines.training.alarms import AlarmConfig
from pipelines.training.config import OptimConfig
from pipelines.training.preflight import open_run
from pipelines.training.worker.loop import TrainWorker
from tests.pipelines.builders import (
    SMALL,
    config_of,
    events,
    losses,
    train_here,
    valid_losses,
)


def test_run_folder_holds_what_is_needed_to_continue_and_to_answer(unbroken):
    assert complete_steps(str(unbroken)) == [2, 4, 6]
    newest = unbroken / "checkpoints" / "000006"
    assert sorted(path.name for path in newest.iterdir()) == [
        "README.md",
        "adapter",
        "aligner.safetensors",
        "optimizer.pt",
        "state.json",
    ]
    assert {path.name for path in (newest / "adapter").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert [line["step"] for line in read_metrics(str(unbroken))] == [1, 2, 3, 4, 5, 6]
    assert "batch_examples: 8" in (unbroken / "config.yaml").read_text()
    assert json.loads((unbroken / "run.json").read_text())["frames"] == 2 * FRAME_RATE_HZ


@pytest.mark.parametrize("kept", [2, 4])
def test_continued_run_is_the_unbroken_one(corpus, unbroken, tmp_path, kept):
    shutil.copytree(unbroken, tmp_path / "run")
    for step in complete_steps(str(unbroken)):
        if step > kept:
            shutil.rmtree(tmp_path / "run" / "checkpoints" / f"{step:06d}")
    train_here(config_of(corpus, tmp_path / "run"))
    assert losses(tmp_path / "run") == losses(unbroken)
    for name in ("aligner.safetensors", "adapter/adapter_model.safetensors"):
        ours, theirs = (load_file(run / "checkpoints" / "000006" / name) for run in (tmp_path / "run", unbroken))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_lines_of_a_continued_run_are_of_the_same_steps(corpus, tmp_path):
    """Also where checkpoints are not a line's multiple apart."""
    config, numbers = config_of(corpus, tmp_path / "run", log_every=3), []
    for _ in range(2):
        train_here(config)
        lines = read_metrics(config.run)
        numbers.append([(line["step"], line["loss"], line["examples_sha256"]) for line in lines])
        for step in (4, 6):
            shutil.rmtree(tmp_path / "run" / "checkpoints" / f"{step:06d}")
    assert numbers[0] == numbers[1] and [step for step, *_ in numbers[0]] == [2, 3, 4, 6]
    assert sum(sum(line["examples_by_task"].values()) for line in lines) == 48


def test_stage_starts_from_the_checkpoint_that_it_began_with(corpus, unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path / "before")
    shutil.move(tmp_path / "before" / "checkpoints" / "000006", tmp_path / "later")
    config = config_of(corpus, tmp_path / "run", init_from=str(tmp_path / "before"))
    open_run(config, pending=[])
    weights = [TrainWorker(config, 0, 1, torch.device("cpu")).model.aligner.state_dict()]
    shutil.move(tmp_path / "later", tmp_path / "before" / "checkpoints" / "000006")
    weights.append(TrainWorker(config, 0, 1, torch.device("cpu")).model.aligner.state_dict())
    assert all(torch.equal(weights[0][name], weight) for name, weight in weights[1].items())
    fourth = load_file(tmp_path / "before" / "checkpoints" / "000004" / "aligner.safetensors")
    assert all(torch.equal(weights[0][name], weight) for name, weight in fourth.items())


def test_checkpoint_without_its_marker_is_not_believed(corpus, unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "000006" / "state.json").unlink()
    (tmp_path / "run" / "checkpoints" / "000006" / "aligner.safetensors").write_bytes(b"half")
    (tmp_path / "run" / "checkpoints" / "000006" / "adapter" / ".tmp-1-adapter_model.safetensors").write_bytes(b"half")
    shutil.copytree(tmp_path / "run" / "checkpoints" / "000006", tmp_path / "run" / "checkpoints" / "000005")
    assert complete_steps(str(tmp_path / "run")) == [2, 4]
    train_here(config_of(corpus, tmp_path / "run"))
    assert losses(tmp_path / "run") == losses(unbroken)
    ours, theirs = (
        sorted(str(path.relative_to(run)) for path in (run / "checkpoints").rglob("*"))
        for run in (tmp_path / "run", unbroken)
    )
    assert ours == theirs


def test_micro_batches_do_not_change_the_update(corpus, tmp_path):
    still = {"qformer": replace(SMALL, dropout=0.0), "lora": LoraSettings(dropout=0.0)}
    for size in (1, 3, 8):
        train_here(config_of(corpus, tmp_path / str(size), micro_batch_examples=size, **still))
    for size in (1, 3):
        assert losses(tmp_path / str(size)) == pytest.approx(losses(tmp_path / "8"), rel=1e-5)


def test_gradient_checkpointing_trains_the_same(corpus, unbroken, tmp_path):
    train_here(config_of(corpus, tmp_path / "run", gradient_checkpointing=True))
    assert losses(tmp_path / "run") == losses(unbroken)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_aligner_and_adapter_learn_on_a_quantised_llm(corpus, tmp_path, precision):
    pytest.importorskip("bitsandbytes")
    config = config_of(corpus, tmp_path / "run", precision=precision, steps=12, checkpoint_every=12)
    train_here(config)
    assert losses(config.run)[-1] < 0.5 * losses(config.run)[0]
    assert load_run(config.run).model.llm.get_base_model().is_quantized


def test_only_aligner_and_adapter_move(corpus, tmp_path):
    config = config_of(corpus, tmp_path / "run", steps=2)
    open_run(config, pending=[])
    worker = TrainWorker(config, 0, 1, torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in worker.model.state_dict().items()}
    worker.run()
    moved = {name for name, tensor in worker.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved and all(name.startswith("aligner.") or ".lora_" in name for name in moved)
    assert any(".lora_B" in name for name in moved) and any("ln_audio" in name for name in moved)


def test_old_checkpoints_go(corpus, tmp_path):
    train_here(config_of(corpus, tmp_path / "run", keep_checkpoints=1))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["000006"]


def test_steps_without_finite_gradients_are_skipped_and_counted(corpus, tmp_path, monkeypatch):
    config = config_of(corpus, tmp_path / "run", steps=1)
    open_run(config, pending=[])
    worker = TrainWorker(config, 0, 1, torch.device("cpu"))
    before = {name: parameter.clone() for name, parameter in worker.parameters.items()}
    with torch.no_grad():
        worker.model.aligner.projection.bias[0] = float("nan")
    worker.run()
    assert read_metrics(config.run)[0]["skipped_steps"] == 1
    untouched = [name for name in before if name != "aligner.projection.bias"]
    assert all(torch.equal(worker.parameters[name], before[name]) for name in untouched)
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["loss"] is None


def test_order_by_shards_trains_on_the_same_examples_shard_after_shard_and_continues(corpus, tmp_path):
    keys = {"order": "shards", "shard_window": 1, "batch_examples": 3, "micro_batch_examples": 3}
    config = config_of(corpus, tmp_path / "run", **keys)
    open_run(config, pending=[])
    worker, seen = TrainWorker(config, 0, 1, torch.device("cpu")), []
    shards = worker.cache.rows()["shard"].to_pylist()
    read = worker.reader.read

    def look(picked, **keys):
        seen.append([(epoch, shards[worker.examples.positions[index]]) for epoch, index in picked])
        return read(picked, **keys)

    worker.reader.read = look
    worker.run()
    order = [shard for batch in seen for epoch, shard in batch if epoch == 0]
    changes = sum(a != b for a, b in itertools.pairwise(order))
    assert len(order) == 9 and changes == len(set(order)) - 1 > 1
    before = losses(config.run)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "000006")
    train_here(config)
    assert losses(config.run) == before


def test_too_many_steps_in_a_row_without_finite_gradients_end_the_run(corpus, tmp_path):
    config = config_of(corpus, tmp_path / "run", max_skipped_steps=3)
    open_run(config, pending=[])
    worker = TrainWorker(config, 0, 1, torch.device("cpu"))
    with torch.no_grad():
        worker.model.aligner.projection.bias[0] = float("nan")
    with pytest.raises(JobIncompleteError, match="not finite in 3 steps in a row, the last of them step 3"):
        worker.run()
    assert complete_steps(config.run) == [2]


def test_held_out_loss_is_the_loss_of_those_examples_on_any_number_of_workers(corpus, unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path / "run")
    worker = TrainWorker(
        config_of(corpus, tmp_path / "run", valid_splits=["test"], valid_every=2, micro_batch_examples=1),
        *(0, 1, torch.device("cpu")),
    )
    line = read_metrics(str(unbroken))[-1]
    assert valid_losses(unbroken)[-1] == line["valid_loss"] == pytest.approx(line["valid_loss_by_task"]["audiocaption"])
    alone, two, three = (
        sum(
            worker.validation.parts(worker.model, rank=rank, world=world, device=worker.device) for rank in range(world)
        )
        for world in (1, 2, 3)
    )
    assert torch.equal(alone, two) and torch.equal(alone, three)
    reader = worker.validation.reader
    batch = read_batch(reader.examples, worker.cache, [(0, 0), (0, 1), (0, 2)], heard=Heard(100), prompt_seed=None)
    worker.model.eval()
    assert line["valid_loss"] == pytest.approx(worker.model.loss(batch).mean.item(), rel=1e-5)


def test_best_checkpoint_stays_and_can_be_asked_for(corpus, unbroken, tmp_path):
    """A run that has learnt high and low goes on with low alone; what is held out is high."""
    shutil.copytree(corpus[0], tmp_path / "m")
    examples = pq.read_table(tmp_path / "m" / "examples.parquet")
    kept = examples.filter((pc.field("split") == "test") | (pc.field("answer") == "low"))
    pq.write_table(kept, tmp_path / "m" / "examples.parquet")
    rising = OptimConfig(lr=1e-2, min_lr=1e-2, warmup_lr=1e-9, warmup_steps=2)
    keys = {"valid_splits": ["test"], "valid_every": 1, "keep_checkpoints": 1, "checkpoint_every": 6}
    config = config_of((str(tmp_path / "m"), corpus[1]), tmp_path / "run", optim=rising, **keys)
    train_here(replace(config, init_from=str(unbroken)))
    run, found = config.run, valid_losses(config.run)
    best = 1 + found.index(min(found))
    assert best < 6 and complete_steps(run) == [best, 6]
    assert [load_run(run, checkpoint=name).step for name in ("best", "last", str(best))] == [best, 6, best]
    with pytest.raises(ValueError, match=f"checkpoint=7: there are best, last and {best}, 6"):
        find_checkpoint(run, "7")


def test_notice_of_preemption_gives_one_checkpoint_at_once(corpus, unbroken, tmp_path):
    config = config_of(corpus, tmp_path / "run", checkpoint_every=100)
    open_run(config, pending=[])
    worker = TrainWorker(config, 0, 1, torch.device("cpu"), preempted=lambda: worker.step >= 3)
    worker.run()
    assert complete_steps(config.run) == [3, 6]
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "000006")
    train_here(config)
    assert losses(config.run) == losses(unbroken)


def test_steps_go_on_while_a_checkpoint_is_written_and_its_errors_end_the_run(corpus, tmp_path, monkeypatch):
    """Storage that stands still after the second checkpoint's first file, and then is full."""
    config, written, full = config_of(corpus, tmp_path / "run"), [], threading.Event()

    def write(uri: str, data: bytes) -> None:
        written.append((uri, worker.step))
        if "000004" in uri:
            assert full.wait(30)
            raise OSError(28, "No space left on device")
        original(uri, data)

    def look(*_: object) -> None:
        if worker.step == 5:
            full.set()

    original = storage.write_bytes
    open_run(config, pending=[])
    worker = TrainWorker(config, 0, 1, torch.device("cpu"))
    worker.optimizer.register_step_pre_hook(look)
    monkeypatch.setattr(storage, "write_bytes", write)
    with pytest.raises(OSError, match="No space left"):
        worker.run()
    assert worker.step == 6 and complete_steps(config.run) == [2]


def test_held_out_loss_that_is_not_finite_is_not_the_lowest(corpus, tmp_path, monkeypatch):
    keys = {"valid_splits": ["test"], "valid_every": 1, "checkpoint_every": 100}
    config, given = config_of(corpus, tmp_path / "run", **keys), iter([6.0, float("nan"), 5.0, 5.5, 4.0, 7.0])
    monkeypatch.setattr(
        "pipelines.training.worker.loop.means",
        lambda tasks, sums, prefix="": {f"{prefix}loss": next(given) if prefix else 1.0, f"{prefix}loss_by_task": {}},
    )
    train_here(config)
    assert complete_steps(config.run) == [1, 3, 5, 6] and best_checkpoint(config.run) == (5, 4.0)


def test_best_is_among_those_validated_on_the_same_examples(corpus, unbroken, tmp_path):
    """The others' losses were lower."""
    shutil.copytree(unbroken, tmp_path / "run")
    for step in (2, 4):
        state = tmp_path / "run" / "checkpoints" / f"{step:06d}" / "state.json"
        state.write_text(json.dumps(json.loads(state.read_text()) | {"valid_loss": 0.001, "held_out": "others"}))
    (tmp_path / "run" / "checkpoints" / "000006" / "state.json").unlink()
    train_here(config_of(corpus, tmp_path / "run", valid_splits=["test"], valid_every=1))
    found = valid_losses(tmp_path / "run")[-2:]
    assert best_checkpoint(str(tmp_path / "run")) == (5 + found.index(min(found)), min(found))
    assert best_checkpoint(str(tmp_path / "run"), "others") == (2, 0.001)


def test_held_out_clip_that_is_damaged_ends_the_run_and_what_is_learnt_stays(corpus, tmp_path):
    shutil.copytree(corpus[1], tmp_path / "c")
    cache = FeatureCache(str(tmp_path / "c"))
    held_out = load_examples(corpus[0], cache, splits=["test"], tasks=[], max_missing_fraction=0)
    position = int(held_out.positions[0])
    with (tmp_path / "c" / "shards" / cache.rows()["shard"][position].as_py()).open("r+b") as shard:
        shard.seek(cache.rows()["speech_offset"][position].as_py() + 200)
        shard.write(b"damage")
    config = config_of(
        (corpus[0], str(tmp_path / "c")),
        tmp_path / "run",
        valid_splits=["test"],
        valid_every=3,
        checkpoint_every=100,
        read=ReadConfig(verify_fraction=1.0),
    )
    with pytest.raises(JobIncompleteError, match=r"validation: .* is damaged"):
        train_here(config)
    assert complete_steps(config.run) == [3] and [line["step"] for line in read_metrics(config.run)] == [1, 2, 3]


def test_checkpoint_that_storage_never_takes_is_an_error(corpus, tmp_path, monkeypatch):
    config, released = config_of(corpus, tmp_path / "run"), threading.Event()
    open_run(config, pending=[])
    worker = TrainWorker(config, 0, 1, torch.device("cpu"))
    monkeypatch.setattr("pipelines.runs.checkpoint.WRITE_SECONDS", 0.2)
    monkeypatch.setattr("pipelines.runs.checkpoint.save_checkpoint", lambda *_, **__: released.wait(30))
    with pytest.raises(TimeoutError, match=r"checkpoint 2: not written within 0\.2 s"):
        worker.run()
    released.set()


def test_best_is_unknown_where_nothing_was_validated(corpus, tmp_path):
    train_here(config_of(corpus, tmp_path / "run", steps=1))
    with pytest.raises(ValueError, match="none was validated; train with valid_splits"):
        find_checkpoint(str(tmp_path / "run"), "best")


def test_metrics_say_how_fast_and_what_and_tensorboard_shows_the_same(corpus, tmp_path):
    alarms = AlarmConfig(data_wait_fraction=1e-9)
    config = config_of(corpus, tmp_path / "run", log_every=3, checkpoint_every=3, alarms=alarms)
    train_here(config)
    lines = read_metrics(config.run)
    assert [line["examples_by_task"] for line in lines] == [{"audiocaption": 24}] * 2
    ratio = lines[0]["audio_hours_per_second"] / lines[0]["examples_per_second"]
    seconds = FeatureCache(corpus[1]).rows()["seconds"].to_numpy()
    assert seconds.min() - 1e-9 <= 3600 * ratio <= min(2.0, seconds.max()) + 1e-9
    (file,) = (tmp_path / "run" / "tensorboard").iterdir()
    shown = {(value.tag, event.step): value.simple_value for event in events(file) for value in event.summary.value}
    for line in lines:
        assert shown["loss_by_task/audiocaption", line["step"]] == pytest.approx(line["loss"])
        assert shown["data_wait_fraction", line["step"]] == pytest.approx(line["data_wait_fraction"])


def test_worker_does_not_go_on_with_examples_that_came_after_the_run_began(corpus, tmp_path):
    """The driver looks when it starts, workers whenever they are started again."""
    shutil.copytree(corpus[1], tmp_path / "c")
    last = sorted((tmp_path / "c" / "index").iterdir())[-1]
    shutil.move(last, tmp_path / "later")
    config = config_of((corpus[0], str(tmp_path / "c")), tmp_path / "run", max_missing_fraction=0.9)
    open_run(config, pending=[])
    TrainWorker(config, 0, 1, torch.device("cpu"))
    shutil.move(tmp_path / "later", last)
    with pytest.raises(JobIncompleteError, match="began with other examples"):
        TrainWorker(config, 0, 1, torch.device("cpu"))
