"""What a training worker really runs, in real processes that add up over gloo: who computes what changes no update.

Covers pipelines.training.worker.agreement.
"""

import json
import multiprocessing
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

from llm.settings import LoraSettings
from pipelines.batches.batch import read_batch
from pipelines.batches.example_set import load_examples
from pipelines.batches.order import global_batch
from pipelines.cache.read_config import ReadConfig
from pipelines.cache.reader import FeatureCache
from pipelines.errors import JobIncompleteError
from pipelines.manifest.corpora.table import TableConfig, prepare_table
from pipelines.runs.metrics import read_metrics
from pipelines.runs.model import build_model
from pipelines.runs.spec import RunSpec
from pipelines.training.config import OptimConfig, TrainConfig
from pipelines.training.optim import learning_rate
from pipelines.training.preflight import open_run
from pipelines.training.worker.loop import TrainWorker
from qformer.config import QFormerConfig
from tests.pipelines.builders import fill, make_worker
from tests.toy import write_tone_corpus

STEPS, GLOBAL_BATCH = 3, 8
RELATIVE_ERROR = 1e-5
QFORMER = QFormerConfig(hidden_width=32, num_heads=2, ffn_width=64, dropout=0.0)
OPTIM = OptimConfig(lr=3e-3, min_lr=1e-3, warmup_lr=1e-3, warmup_steps=2, weight_decay=0.1, clip_norm=0.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, str]:
    """A manifest and its cache; answers of one to five words, so that micro-batches differ in target tokens."""
    folder = write_tone_corpus(tmp_path_factory.mktemp("corpus"), num_clips=12)
    rows = [json.loads(line) for line in (folder / "table.jsonl").read_text().splitlines()]
    rows = [row | {"text": " ".join([row["text"]] * (number % 5 + 1))} for number, row in enumerate(rows)]
    (folder / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = str(folder / "m")
    prepare_table(TableConfig(table=str(folder / "table.jsonl"), audio_root=str(folder / "audio"), out=manifest))
    fill(folder / "c", manifest, make_worker(folder / "c"))
    return {"manifest": manifest, "cache": str(folder / "c")}


def config_of(data, run, *, micro_batch_examples=GLOBAL_BATCH, dropout=0.0, **keys) -> TrainConfig:
    return TrainConfig(
        **data,
        run=str(run),
        llm="tiny",
        steps=STEPS,
        batch_examples=GLOBAL_BATCH,
        micro_batch_examples=micro_batch_examples,
        heard_seconds=2.0,
        qformer=replace(QFORMER, dropout=dropout),
        lora=LoraSettings(dropout=dropout),
        optim=OPTIM,
        **keys,
    )


def train(config: TrainConfig, *, workers: int) -> dict[str, torch.Tensor]:
    """Train in processes of their own; return every step's gradients and the last weights, which all of them share."""
    open_run(config, pending=[])
    # Forked from a server that has imported everything and computed nothing: autograd's threads do not survive a fork.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    processes = [context.Process(target=work, args=(config, rank, workers)) for rank in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * workers
    first, *others = [load_file(f"{config.run}/rank{rank}.safetensors") for rank in range(workers)]
    assert all(torch.equal(other[name], tensor) for other in others for name, tensor in first.items())
    return first


def work(config: TrainConfig, rank: int, workers: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{config.run}/store", rank=rank, world_size=workers)
    worker = TrainWorker(config, rank, workers, torch.device("cpu"))
    assert worker.sharded == any(isinstance(weight, DTensor) for weight in worker.model.llm.parameters())
    seen: dict[str, torch.Tensor] = {}
    worker.optimizer.register_step_pre_hook(lambda *_: seen.update(gradients_of(worker.parameters, worker.step)))
    worker.run()
    save_file(seen | weights_of(worker.parameters), f"{config.run}/rank{rank}.safetensors")


def gradients_of(parameters, step) -> dict[str, torch.Tensor]:
    return {f"gradient {step} {name}": parameter.grad.clone() for name, parameter in parameters.items()}


def weights_of(parameters) -> dict[str, torch.Tensor]:
    return {f"weight {name}": parameter.detach().clone() for name, parameter in parameters.items()}


def train_plainly(config: TrainConfig) -> dict[str, torch.Tensor]:
    """The textbook's loop: the whole batch at once, the mean of its loss, AdamW."""
    open_run(config, pending=[])
    cache = FeatureCache(config.cache)
    examples = load_examples(config.manifest, cache, splits=["train"], tasks=[], max_missing_fraction=0)
    spec = RunSpec.read(config.run)
    model = build_model(spec, config.run, device="cpu", seed=config.seed).train()
    parameters, seen = model.trainable_parameters(), {}
    decaying, others = ([p for p in parameters.values() if (p.ndim > 1) is decays] for decays in (True, False))
    optimizer = torch.optim.AdamW([{"params": decaying, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}])
    for step in range(STEPS):
        picked = global_batch(step, batch_examples=GLOBAL_BATCH, num_examples=len(examples), seed=config.seed)
        batch = read_batch(examples, cache, picked, heard=spec.heard, prompt_seed=config.seed)
        model.loss(batch).mean.backward()
        seen |= gradients_of(parameters, step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, STEPS, OPTIM)
        optimizer.step()
        optimizer.zero_grad()
    return seen | weights_of(parameters)


def differing(ours: dict, theirs: dict) -> dict[str, float]:
    """Return the relative errors that are too large, by name.

    A key's bias of cross-attention moves all scores alike: its gradient is rounding noise, which AdamW scales up.
    """
    assert ours.keys() == theirs.keys()
    errors = {name: float((ours[name] - theirs[name]).norm() / theirs[name].norm().clamp(min=1e-30)) for name in theirs}
    return {
        name: error
        for name, error in errors.items()
        if not name.endswith("cross_attention.key.bias") and not error <= RELATIVE_ERROR
    }


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory) -> dict[str, torch.Tensor]:
    return train_plainly(config_of(data, tmp_path_factory.mktemp("plain")))


@pytest.mark.parametrize(
    ("workers", "micro_batch_examples"),
    [(1, 8), (1, 3), (2, 4), (2, 3), (4, 1), (4, 3), (4, 4)],
    ids=str,
)
def test_any_workers_and_micro_batches_give_the_update_of_the_whole_batch(
    data, plain, tmp_path, workers, micro_batch_examples
):
    """Also where the last micro-batch is smaller (3 of 8), and where there are fewer than workers (4 of 8 on 4)."""
    config = config_of(data, tmp_path, micro_batch_examples=micro_batch_examples)
    assert differing(train(config, workers=workers), plain) == {}


def test_who_computes_what_changes_no_bit_of_dropout_gradients_and_weights(data, plain, tmp_path):
    found = {
        workers: train(config_of(data, tmp_path / str(workers), micro_batch_examples=2, dropout=0.1), workers=workers)
        for workers in (1, 2, 4)
    }
    for name, tensor in found[1].items():
        assert torch.equal(found[2][name], tensor) and torch.equal(found[4][name], tensor), name
    assert len(differing(found[1], plain)) > len(plain) / 2


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize(("workers", "micro_batch_examples"), [(2, 3), (4, 4)], ids=str)
def test_llm_spread_over_workers_gives_the_same_bits_as_a_copy_on_each(
    data, tmp_path, workers, micro_batch_examples, gradient_checkpointing
):
    """Also where some workers have fewer micro-batches than others (3 on 2), or none (2 on 4), and in validation."""
    keys = {"valid_splits": ["test"], "valid_every": 1, "log_every": 1, "checkpoint_every": 2}
    keys |= {"micro_batch_examples": micro_batch_examples, "gradient_checkpointing": gradient_checkpointing}
    found, lines = {}, {}
    for shard_llm in (False, True):
        config = config_of(data, tmp_path / str(shard_llm), dropout=0.1, shard_llm=shard_llm, **keys)
        found[shard_llm] = train(config, workers=workers)
        lines[shard_llm] = [
            (line["loss"], line["valid_loss"], line["examples_sha256"]) for line in read_metrics(config.run)
        ]
    assert all(torch.equal(found[True][name], tensor) for name, tensor in found[False].items())
    assert lines[True] == lines[False] and len(lines[True]) == STEPS


def test_what_one_worker_cannot_read_ends_all_of_them_with_its_reason(data, tmp_path):
    """Only one of them has the clip in its part; the others say the same, and none waits."""
    shutil.copytree(data["cache"], tmp_path / "c")
    config = config_of(data | {"cache": str(tmp_path / "c")}, tmp_path / "run", micro_batch_examples=4)
    open_run(config, pending=[])
    cache = FeatureCache(config.cache)
    examples = load_examples(config.manifest, cache, splits=["train"], tasks=[], max_missing_fraction=0)
    (_, first), *_ = global_batch(0, batch_examples=GLOBAL_BATCH, num_examples=len(examples), seed=config.seed)
    row = cache.rows().slice(int(examples.positions[first]), 1).to_pylist()[0]
    with (tmp_path / "c" / "shards" / row["shard"]).open("r+b") as file:
        file.seek(row["speech_offset"] + row["speech_nbytes"] - 1)
        file.write(b"\xff")
    config = replace(config, read=ReadConfig(verify_fraction=1.0))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    processes = [context.Process(target=end, args=(config, rank)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    reasons = [(tmp_path / "run" / f"reason{rank}").read_text() for rank in range(2)]
    assert reasons[0] == reasons[1] and f"of clip {row['clip_id']} is damaged" in reasons[0]


def end(config: TrainConfig, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{config.run}/store", rank=rank, world_size=2)
    worker = TrainWorker(config, rank, 2, torch.device("cpu"))
    with pytest.raises(JobIncompleteError) as raised:
        worker.run()
    (Path(config.run) / f"reason{rank}").write_text(str(raised.value))
