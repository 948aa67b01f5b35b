"""Covers pipelines.training.data."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llm.settings import LoraSettings
from pipelines.runs.spec import RunSpec
from pipelines.training.preflight import open_run
from pipelines.training.worker.loop import TrainWorker
from pipelines.training.worker.resources import RunResources
from tests.pipelines.builders import config_of, fill, losses, make_worker, prepare_tones

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("corpus")
    manifest = prepare_tones(folder, num_clips=8)
    fill(folder / "c", manifest, make_worker(folder / "c"))
    return manifest, str(folder / "c")


def trained(config, resources: RunResources | None) -> TrainWorker:
    open_run(config, pending=[])
    worker = TrainWorker(config, 0, 1, CPU, resources=resources)
    worker.run()
    return worker


def test_runs_that_share_cache_and_llm_are_those_that_have_their_own(corpus, tmp_path):
    resources, workers = RunResources(), []
    variants = [
        {"gradient_checkpointing": True},
        {"lora": LoraSettings(rank=4, target_modules=["q_proj", "k_proj", "o_proj"]), "seed": 1},
        {"lora_scaling": 0.5},
    ]
    for number, keys in enumerate(variants):
        config = config_of(corpus, tmp_path / f"shared-{number}", steps=3, **keys)
        workers.append(trained(config, resources))
        ours = {name: tensor.clone() for name, tensor in workers[-1].model.state_dict().items()}
        alone = trained(replace(config, run=str(tmp_path / f"alone-{number}")), None)
        theirs = alone.model.state_dict()
        assert losses(config.run) == losses(alone.config.run)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    weights = [worker.model.llm.get_input_embeddings().weight.data_ptr() for worker in workers]
    assert len(set(weights)) == 1
    assert len({id(worker.cache) for worker in workers}) == len({id(worker.examples) for worker in workers}) == 1


def test_another_llm_cache_or_selection_is_loaded(corpus, tmp_path):
    other = prepare_tones(tmp_path, num_clips=12), str(tmp_path / "c")
    fill(tmp_path / "c", other[0], make_worker(tmp_path / "c"))
    resources, configs = (
        RunResources(),
        [config_of(data, tmp_path / f"run-{place}") for place, data in enumerate((corpus, other))],
    )
    for config in configs:
        open_run(config, pending=[])
    llm = Path(configs[1].run) / "llm" / "generation_config.json"
    llm.write_text("{}")  # the tones' texts, and so the LLMs, are the same
    models = [resources.build(RunSpec.read(config.run), config.run, device="cpu", seed=0) for config in configs]
    weights = [model.llm.get_input_embeddings().weight.data_ptr() for model in models]
    assert weights[0] != weights[1]
    caches = [resources.open_cache(config.cache, config.read) for config in configs]
    assert [cache.uri for cache in caches] == [corpus[1], other[1]]
    splits = [
        resources.load_train_examples(replace(configs[1], splits=[split]), caches[1], ())
        for split in ("train", "test", "train")
    ]
    assert splits[0] is splits[2] and [len(examples) for examples in splits] == [9, 3, 9]
