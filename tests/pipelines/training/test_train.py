import itertools
import json
import shutil
import struct
import threading
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from ray.exceptions import RayActorError
from safetensors.torch import load_file
from tensorboardX.proto.event_pb2 import Event

from encoders.features import FRAME_RATE_HZ
from llm.settings import LoraSettings
from pipelines import storage
from pipelines.batches.batch import read_batch
from pipelines.batches.example_set import load_examples
from pipelines.cache.read_config import ReadConfig
from pipelines.cache.reader import FeatureCache
from pipelines.cli import main
from pipelines.errors import JobIncompleteError
from pipelines.inference.ask import ask
from pipelines.inference.config import AskConfig, EvaluateConfig
from pipelines.inference.evaluate import Prediction, evaluate, score_tasks
from pipelines.inference.scoring.scores import exact_match, normalise, word_accuracy, word_error_rate
from pipelines.interface.progress import Phase
from pipelines.manifest.corpora.table import TableConfig, prepare_table
from pipelines.runs.checkpoint import load_run
from pipelines.runs.folder import best_checkpoint, complete_steps, find_checkpoint
from pipelines.runs.metrics import read_metrics
from pipelines.training.alarms import AlarmConfig
from pipelines.training.config import OptimConfig, TrainConfig
from pipelines.training.monitoring.watch import watched
from pipelines.training.preflight import open_run
from pipelines.training.train import _describe_failures, train, train_in_turn
from pipelines.training.worker.loop import TrainWorker
from qformer.config import QFormerConfig
from tests import ROOT
from tests.pipelines.cache.test_reader import fill, make_worker, prepare_tones

SHARED = ROOT / ".." / "shared" / "data"
SMALL = QFormerConfig(hidden_width=32, num_heads=2, ffn_width=64, dropout=0.1)
FAST = OptimConfig(lr=3e-3, min_lr=1e-4, warmup_lr=1e-3, warmup_steps=2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[str, str]:
    """A manifest of 12 high and low tones, a quarter of them held out, and its cache."""
    folder = tmp_path_factory.mktemp("corpus")
    manifest = prepare_tones(folder, num_clips=12)
    fill(folder / "c", manifest, make_worker(folder / "c"))
    return manifest, str(folder / "c")


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


@pytest.fixture(scope="module")
def unbroken(corpus, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "unbroken"
    train_here(config_of(corpus, run, valid_splits=["test"], valid_every=2))
    return run


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
    assert complete_steps(str(tmp_path / "run")) == [2, 4]
    train_here(config_of(corpus, tmp_path / "run"))
    assert losses(tmp_path / "run") == losses(unbroken)


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
    shards = worker.cache.index["shard"].to_pylist()
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
    batch = read_batch(reader.examples, worker.cache, [(0, 0), (0, 1), (0, 2)], frames=100, prompt_seed=None)
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
    with (tmp_path / "c" / "shards" / cache.index["shard"][position].as_py()).open("r+b") as shard:
        shard.seek(cache.index["speech_offset"][position].as_py() + 200)
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
    seconds = FeatureCache(corpus[1]).index["seconds"].to_numpy()
    assert seconds.min() - 1e-9 <= 3600 * ratio <= min(2.0, seconds.max()) + 1e-9
    (file,) = (tmp_path / "run" / "tensorboard").iterdir()
    shown = {(value.tag, event.step): value.simple_value for event in events(file) for value in event.summary.value}
    for line in lines:
        assert shown["loss_by_task/audiocaption", line["step"]] == pytest.approx(line["loss"])
        assert shown["data_wait_fraction", line["step"]] == pytest.approx(line["data_wait_fraction"])


def events(file: Path) -> Iterator[Event]:
    """Read TensorBoard's records: length, its checksum, bytes, their checksum."""
    data, place = file.read_bytes(), 0
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        yield Event.FromString(data[place + 12 : place + 12 + length])
        place += 16 + length


def test_progress_is_that_of_the_run_that_goes_on(corpus, unbroken, tmp_path):
    other = config_of(corpus, tmp_path / "other", steps=2)
    train_here(other)
    shown: list[tuple[float, str]] = []

    class Shown(Phase):
        def update(self, done: float, *, note: str | None = None, total: float | None = None) -> None:
            shown.append((done, str(note)))

    with watched([config_of(corpus, unbroken), other], Shown("train", "steps", 8, None)):
        pass
    assert {done for done, _ in shown} == {8} and all(note.startswith("other: loss") for _, note in shown)


def test_an_alarm_is_marked_in_the_metrics_and_told_once(corpus, tmp_path, capsys):
    config = config_of(corpus, tmp_path / "run", alarms=AlarmConfig(data_wait_fraction=1e-9))
    phase = Phase("train", "steps", 6, None)
    with watched([config], phase):
        train_here(config)
    assert [line["step"] for line in read_metrics(config.run) if "alarms" in line] == [5]
    told = capsys.readouterr().err
    assert told.count("run: step 5: data wait: ") == 1
    assert phase.done == 6 and "h of audio/s" in phase.note and "waiting for data" in phase.note
    with watched([config], phase):
        pass
    assert "data wait" not in capsys.readouterr().err


@pytest.mark.ray
def test_two_workers_of_ray_train_give_the_losses_of_one_and_hand_over_to_the_next_stage(
    corpus, unbroken, tmp_path, ray_session
):
    first = config_of(corpus, tmp_path / "one", workers=2, valid_splits=["test"], valid_every=2)
    second = config_of(corpus, tmp_path / "two", workers=2, steps=2, init_from=first.run, lora_scaling=0.5)
    reports = train_in_turn([first, second])
    assert losses(first.run) == pytest.approx(losses(unbroken), rel=1e-5)
    assert valid_losses(first.run) == pytest.approx(valid_losses(unbroken), rel=1e-5)
    assert [report.steps for report in reports] == [6, 2]
    assert losses(second.run)[0] < losses(first.run)[0]
    assert (tmp_path / "one/llm/model.safetensors").read_bytes() == (
        tmp_path / "two/llm/model.safetensors"
    ).read_bytes()
    for config in (first, second):
        page = (Path(config.run) / "report.html").read_text()
        assert f"{config.steps} of {config.steps} steps, 2 workers" in page and "Ended early" not in page
    assert train(first).loss == reports[0].loss


def test_complete_run_needs_no_cluster(corpus, unbroken, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pipelines.training.train.connect", lambda config: pytest.fail("a cluster was asked for"))
    report = train(config_of(corpus, unbroken))
    assert report.steps == 6 and "complete, nothing to do" in capsys.readouterr().out


def words_of(config: TrainConfig) -> list[str]:
    return ["train", f"manifest={config.manifest}", f"cache={config.cache}", f"run={config.run}", f"llm={config.llm}"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["llm=absent"], "absent: no language model here"),
        (["splits=[dev]"], "splits found: test, train"),
        (["tasks=[asr]"], "tasks found: audiocaption"),
        (["manifest=absent"], "no manifest there"),
        (["cache=absent"], "no feature cache there"),
        (["init_from=absent"], "no run there"),
        (["steps=0"], "steps=0: must be 1 or more"),
        (["qformer.hidden_width=7"], "hidden_width"),
        (["optim.lr=fast"], "optim.lr"),
        (["optim.clip_norm=-1"], "clip_norm=-1.0: must be 0 or more"),
        (["optim.beta2=1"], "beta2=1.0: must be between 0 and"),
        (["optim.learning_rate=1"], "unknown key optim.learning_rate"),
        (["keep_checkpoints=0"], "keep_checkpoints=0: must be 1 or more"),
        (["valid_every=5"], "valid_splits names no split"),
        (["valid_every=5", "valid_splits=[train]"], "splits=['train'] are learnt, not held out"),
        (["valid_every=5", "valid_splits=[dev]"], "splits found: test, train"),
        (["run="], "run=… is needed"),
        *([] if find_spec("wandb") else [(["wandb=mine"], "pip install wandb")]),
        (["heard_seconds=40"], "heard_seconds=40.0: must be between 1 and 30"),
        *([] if find_spec("bitsandbytes") else [(["precision=int4"], "pip install 'salmonn-pipeline[quantised]'")]),
    ],
)
def test_wrong_keys_give_one_line_and_exit_code_2(corpus, tmp_path, keys, message, capsys):
    assert main([*words_of(config_of(corpus, tmp_path / "run")), *keys]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def test_llm_may_be_a_name_on_the_hub(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main([*words_of(config_of(corpus, tmp_path / "run", llm="some-lab/absent"))]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("salmonn: some-lab/absent: cannot read")


def test_run_folder_of_another_config_is_refused(corpus, unbroken, capsys):
    config = config_of(corpus, unbroken)
    with pytest.raises(ValueError, match=r"another config: seed is 0 there and 1 here"):
        train(replace(config, seed=1))
    assert main(words_of(config)) == 2
    assert "holds a run with another config" in capsys.readouterr().err


def test_run_does_not_go_on_with_other_examples_or_features(corpus, unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path / "run")
    manifest = prepare_tones(tmp_path / "more", num_clips=16)
    fill(tmp_path / "c", manifest, make_worker(tmp_path / "c"))
    with pytest.raises(ValueError, match="learnt from other examples"):
        open_run(config_of((manifest, str(tmp_path / "c")), tmp_path / "run"), pending=[])
    fill(tmp_path / "d", corpus[0], make_worker(tmp_path / "d", codec="int8"))
    with pytest.raises(ValueError, match="codec is"):
        open_run(config_of((corpus[0], str(tmp_path / "d")), tmp_path / "run"), pending=[])


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


def test_cache_without_any_of_the_clips_is_refused_whatever_may_be_missing(corpus, tmp_path):
    shutil.copytree(corpus[0], tmp_path / "m")
    examples = pq.read_table(tmp_path / "m" / "examples.parquet")
    others = pa.array([f"other-{clip}" for clip in examples["clip_id"].to_pylist()])
    renamed = examples.set_column(examples.schema.get_field_index("clip_id"), "clip_id", others)
    pq.write_table(renamed, tmp_path / "m" / "examples.parquet")
    with pytest.raises(ValueError, match="lacks the features of 9 of 9 examples"):
        open_run(config_of((str(tmp_path / "m"), corpus[1]), tmp_path / "run", max_missing_fraction=1.0), pending=[])


def test_mix_that_learns_what_is_held_out_is_refused(corpus, tmp_path):
    (tmp_path / "mix.yaml").write_text("- {task: audiocaption, splits: [train, test]}")
    config = config_of(corpus, tmp_path / "run", mix=str(tmp_path / "mix.yaml"), valid_splits=["test"], valid_every=2)
    with pytest.raises(ValueError, match=r"valid_splits=\['test'\]: \['test'\] is learnt, by the mix's row audiocap"):
        open_run(config, pending=[])


@pytest.mark.ray
def test_workers_without_room_in_a_cluster_end_the_run_after_the_stated_time(
    corpus, tmp_path, ray_session, monkeypatch, capsys
):
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    with pytest.raises(JobIncompleteError, match=r"workers did not start \(no_workers_seconds=1\)"):
        train(config_of(corpus, tmp_path / "run", workers=99, no_workers_seconds=1.0))
    assert "workers=99 with threads=1 on cpu each: the cluster has room for 4 now" in capsys.readouterr().err


def test_of_many_workers_failures_the_one_that_came_first_is_told():
    collateral = RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")
    own = ValueError("no such thing")
    assert _describe_failures({0: collateral, 1: own}) == "worker 1: no such thing"
    assert _describe_failures({0: collateral, 2: RayActorError()}).startswith("worker 2: The actor")
    assert _describe_failures({1: collateral}).startswith("worker 1: [gloo")


def test_examples_without_features_are_listed_before_training_starts(corpus, tmp_path, capsys):
    shutil.copytree(corpus[1], tmp_path / "c")
    cache = FeatureCache(corpus[1])
    shard = min((tmp_path / "c" / "index").iterdir())
    gone = set(pq.read_table(shard)["clip_id"].to_pylist())
    shard.unlink()
    config = config_of((corpus[0], str(tmp_path / "c")), tmp_path / "run", max_missing_fraction=1.0)
    assert len(open_run(config, pending=[])) < 9 <= len(cache.index)
    listed = pq.read_table(tmp_path / "run" / "missing.parquet")
    assert set(listed["clip_id"].to_pylist()) <= gone and listed.num_rows
    assert f"{listed.num_rows} examples are left out" in capsys.readouterr().out


def test_stage_of_another_shape_is_refused(corpus, unbroken, tmp_path):
    config = config_of(corpus, tmp_path / "run", init_from=str(unbroken), qformer=replace(SMALL, hidden_width=64))
    with pytest.raises(ValueError, match=r"qformer\.hidden_width is 32 there and 64 here"):
        open_run(config, pending=[])


def test_cache_of_another_recipe_is_refused(corpus, unbroken, tmp_path):
    manifest = corpus[0]
    fill(tmp_path / "c", manifest, make_worker(tmp_path / "c", codec="int8"))
    with pytest.raises(ValueError, match="codec is 'int8' there and 'float16' here"):
        evaluate(EvaluateConfig(run=str(unbroken), manifest=manifest, cache=str(tmp_path / "c")))
    config = config_of((manifest, str(tmp_path / "c")), tmp_path / "run", init_from=str(unbroken))
    with pytest.raises(ValueError, match="another recipe"):
        open_run(config, pending=[])


def test_evaluation_writes_predictions_and_metrics(corpus, unbroken, tmp_path):
    config = EvaluateConfig(
        run=str(unbroken), manifest=corpus[0], cache=corpus[1], out=str(tmp_path), num_beams=2, max_new_tokens=5
    )
    scores = evaluate(config)
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 3 and {line["reference"] for line in lines} == {"high"}
    right = sum(normalise(line["answer"]) == line["reference"] for line in lines) / 3
    assert scores[0].metrics["accuracy"] == right
    assert json.loads((tmp_path / "metrics.json").read_text())["step"] == 6


def test_asking_hears_what_evaluation_heard(corpus, unbroken, tmp_path, capsys):
    config = EvaluateConfig(
        run=str(unbroken), manifest=corpus[0], cache=corpus[1], out=str(tmp_path), num_beams=1, max_new_tokens=5
    )
    evaluate(config)
    line = json.loads((tmp_path / "predictions.jsonl").read_text().splitlines()[0])
    cache = FeatureCache(corpus[1])
    position = int(cache.positions([line["clip_id"]])[0])
    assert cache.index["clip_id"][position].as_py() == line["clip_id"]
    recording = Path(corpus[0]).parent / "audio" / "tone-3.wav"
    keys = {"run": str(unbroken), "audio": str(recording), "num_beams": 1, "max_new_tokens": 5}
    assert ask(AskConfig(question=line["question"], **keys)) == line["answer"]
    assert line["answer"] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["audio=absent.wav"], "absent.wav: no such file"),
        (["run=absent"], "no run there"),
        (["whisper=absent"], "whisper=absent"),
        (["beats=none"], "streams.audio"),
        (["beats=README.md"], "README.md: not a readable checkpoint"),
        (["threads=0"], "threads=0: must be 1 or more"),
        *([] if torch.cuda.is_available() else [(["device=cuda"], "no GPU")]),
    ],
)
def test_asking_wrongly_gives_one_line_and_exit_code_2(corpus, unbroken, tmp_path, keys, message, capsys):
    recording = Path(corpus[0]).parent / "audio" / "tone-3.wav"
    assert main(["ask", f"run={unbroken}", f"audio={recording}", "question=What?", *keys]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def test_asking_about_an_unreadable_recording_says_why(unbroken, tmp_path, capsys):
    (tmp_path / "x.wav").write_text("not audio")
    assert main(["ask", f"run={unbroken}", f"audio={tmp_path}/x.wav", "question=What?"]) == 2
    assert "x.wav: " in capsys.readouterr().err


def test_scores():
    assert word_error_rate(["a b c", "d"], ["a x c", "d e"]) == pytest.approx(2 / 4)
    assert word_accuracy(["a b c", "d"], ["a x c", "d e"]) == pytest.approx(3 / 4)
    assert exact_match(["A dog.", "rain"], ["a dog", "wind"]) == 0.5
    predictions = [Prediction("1", "c", "asr", "?", "red boat", "red"), Prediction("2", "c", "aqa", "?", "x", "x")]
    found = {task.task: task.metrics for task in score_tasks(predictions)}
    assert found == {"aqa": {"accuracy": 1.0}, "asr": {"wer": 0.5, "word_accuracy": 0.5}}


@pytest.mark.weights
def test_real_whisper_and_real_llama_go_the_same_way(tmp_path):
    weights = SHARED / "weights"
    if not weights.exists():
        pytest.skip("the real recordings and weights of ../shared/data are not here")
    whisper, llm = str(weights / "whisper-tiny.en-encoder"), str(weights / "tinystories-260k-llama")
    recordings = [f"{digit}_george_{take}.wav" for digit in (0, 1) for take in (0, 1)]
    rows = [{"path": name, "text": "zero" if name[0] == "0" else "one", "split": "train"} for name in recordings]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    root = SHARED / "fsdd" / "recordings"
    prepare_table(TableConfig(table=str(tmp_path / "t.jsonl"), audio_root=str(root), out=str(tmp_path / "m")))
    fill(tmp_path / "c", str(tmp_path / "m"), make_worker(tmp_path / "c", whisper=whisper, beats="none"))
    config = config_of(
        (str(tmp_path / "m"), str(tmp_path / "c")), tmp_path / "run", llm=llm, steps=20, checkpoint_every=20
    )
    train_here(config)
    assert losses(config.run)[-1] < 0.5 * losses(config.run)[0]
    assert load_run(config.run).spec.llm == llm
    recording = root / "1_george_0.wav"
    assert soundfile.info(recording).samplerate == 8_000
    assert isinstance(
        ask(AskConfig(run=config.run, audio=str(recording), question="What is said?", max_new_tokens=5)), str
    )
