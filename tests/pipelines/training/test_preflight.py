"""What is refused before a cluster is asked for.

Covers pipelines.training.base_llm, pipelines.training.config.
"""

import shutil
from dataclasses import replace
from importlib.util import find_spec

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.cache.reader import FeatureCache
from pipelines.cli import main
from pipelines.inference.config import EvaluateConfig
from pipelines.inference.evaluate import evaluate
from pipelines.interface.version import product_version
from pipelines.interface.words import counted
from pipelines.runs.spec import RunSpec
from pipelines.training.config import TrainConfig
from pipelines.training.preflight import open_run
from pipelines.training.train import train
from tests.pipelines.builders import SMALL, config_of, fill, make_worker, prepare_tones


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
        (["heard_seconds=40"], "heard_seconds=40: hear=all hears 30 s; give hear=clip to hear more"),
        (["heard_seconds=0.5"], "heard_seconds=0.5: must be 1 or more"),
        (["heard_seconds=40", "hear=clip"], "holds 30 s of a clip at most; extract with max_clip_seconds=… holds more"),
        *([] if find_spec("bitsandbytes") else [(["precision=int4"], "pip install 'salmonn-pipeline[quantised]'")]),
    ],
)
def test_wrong_keys_give_one_line_and_exit_code_2(corpus, tmp_path, keys, message, capsys):
    assert main([*words_of(config_of(corpus, tmp_path / "run")), *keys]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["stage3"], "tasks found: audiocaption; to take all: mix= tasks=[]"),
        (["stage3", "mix="], "tasks found: audiocaption; to take all: tasks=[]"),
        (["stage3", "mix=", "tasks=[]", "splits=[dev]"], "to take all: splits=[]"),
        (["stage3", "mix=", "tasks=[]"], "absent: no run there"),
    ],
)
def test_a_stage_on_other_tasks_than_its_own_says_which_keys_take_all(corpus, tmp_path, keys, message, capsys):
    assert main([*words_of(config_of(corpus, tmp_path / "run")), *keys, "init_from=absent"]) == 2
    assert message in capsys.readouterr().err


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


def test_examples_without_features_are_listed_before_training_starts(corpus, tmp_path, capsys):
    shutil.copytree(corpus[1], tmp_path / "c")
    cache = FeatureCache(corpus[1])
    shard = min((tmp_path / "c" / "index").iterdir())
    gone = set(pq.read_table(shard)["clip_id"].to_pylist())
    shard.unlink()
    config = config_of((corpus[0], str(tmp_path / "c")), tmp_path / "run", max_missing_fraction=1.0)
    assert len(open_run(config, pending=[])) < 9 <= cache.num_clips
    listed = pq.read_table(tmp_path / "run" / "missing.parquet")
    assert set(listed["clip_id"].to_pylist()) <= gone and listed.num_rows
    assert f"{counted(listed.num_rows, 'example')} left out" in capsys.readouterr().out


def test_clips_that_are_not_heard_to_their_end_are_counted(corpus, tmp_path, capsys):
    open_run(config_of(corpus, tmp_path / "run", heard_seconds=1.1), pending=[])
    assert "of 6 of 9 examples only the first heard_seconds=1.1 are heard" in capsys.readouterr().out
    open_run(config_of(corpus, tmp_path / "all"), pending=[])
    assert "heard_seconds" not in capsys.readouterr().out


def test_a_run_keeps_the_version_that_began_it_and_another_one_that_goes_on_is_said(
    corpus, unbroken, tmp_path, monkeypatch, capsys
):
    shutil.copytree(unbroken, tmp_path / "run")
    config = config_of(corpus, tmp_path / "run", valid_splits=["test"], valid_every=2)
    open_run(config, pending=[])
    assert (
        RunSpec.read(config.run).version == product_version() == "0.1.0" and "begun by" not in capsys.readouterr().out
    )
    monkeypatch.setattr("pipelines.training.preflight.product_version", lambda: "9.0.0")
    open_run(config, pending=[])
    assert f"{config.run}: begun by salmonn 0.1.0, goes on with salmonn 9.0.0" in capsys.readouterr().out
    assert RunSpec.read(config.run).version == "0.1.0"


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
