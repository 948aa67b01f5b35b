"""Covers pipelines.runs.compare, pipelines.runs.metrics."""

import json
import re
import shutil
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.errors import UserError
from pipelines.interface.config import load_config
from pipelines.manifest.corpora.table import TableConfig, prepare_table
from pipelines.runs.compare import runs_compare
from pipelines.runs.config import RunsCompareConfig, RunsListConfig
from pipelines.runs.metrics import IN_EVERY_LINE, read_metrics
from pipelines.runs.summary import runs_list
from pipelines.training.config import TrainConfig, with_full_paths
from tests.pipelines.builders import fill, make_worker, metrics_line, train_here
from tests.toy import write_tone_corpus

SMALL = ["heard_seconds=2", "qformer.hidden_width=32", "qformer.num_heads=2", "qformer.ffn_width=64", "optim.lr=3e-3"]
SHORT = ["steps=4", "batch_examples=4", "optim.warmup_steps=1", "log_every=1"]
TASKS = ("asr", "audiocaption", "audio_story", "aqa")


@pytest.fixture(scope="module")
def stages(tmp_path_factory) -> Path:
    """A folder with stage1, stage2, stage3 and a second stage 2 from the same stage 1, each found by its name."""
    folder = tmp_path_factory.mktemp("stages")
    corpus = write_tone_corpus(folder)
    rows = [json.loads(line) for line in (corpus / "table.jsonl").read_text().splitlines()]
    rows = [row | {"task": TASKS[number % 3]} for number, row in enumerate(rows)]
    (corpus / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare_table(
        TableConfig(table=str(corpus / "table.jsonl"), audio_root=str(corpus / "audio"), out=str(folder / "m"))
    )
    fill(folder / "c", str(folder / "m"), make_worker(folder / "c"))
    shared = [f"manifest={folder}/m", f"cache={folder}/c", f"runs={folder}/runs", "llm=tiny", *SMALL]
    for words in (
        ["stage1", *shared, "mix=", *SHORT],
        ["stage2", *shared, "mix=", *SHORT],
        ["stage2", *shared, "mix=", *SHORT, "name=slow", "optim.lr=1e-3", "valid_splits=[test]", "valid_every=2"],
        ["stage3", *shared],
    ):
        train_here(with_full_paths(load_config(TrainConfig, words)))
    return folder / "runs"


def test_stages_follow_each_other_by_name(stages):
    assert sorted(path.name for path in stages.iterdir()) == ["slow", "stage1", "stage2", "stage3"]
    seen = {
        stage: {task for line in read_metrics(str(stages / stage)) for task in line["examples_by_task"]}
        for stage in ("stage1", "stage2", "stage3")
    }
    assert seen == {"stage1": {"asr", "audiocaption"}, "stage2": set(TASKS[:3]), "stage3": {"audio_story"}}
    stage3 = read_metrics(str(stages / "stage3"))
    assert [line["step"] for line in stage3] == list(range(1, 13))
    one, two = (json.loads((stages / stage / "run.json").read_text()) for stage in ("stage1", "stage3"))
    assert one["aligner"] == two["aligner"]
    assert "init_from: " + str(stages / "stage2") in (stages / "stage3" / "config.yaml").read_text()
    tiny = [(stages / stage / "llm" / "model.safetensors").read_bytes() for stage in ("stage1", "stage2", "stage3")]
    assert tiny[0] == tiny[1] == tiny[2]


def test_stage_whose_predecessor_is_missing_says_which(stages, tmp_path, capsys):
    words = ["stage2", f"manifest={stages}/../m", f"cache={stages}/../c", "llm=tiny", "mix=", f"runs={tmp_path}"]
    assert main(["train", *words]) == 2
    assert f"{tmp_path}/stage1: no run there" in capsys.readouterr().err


def test_run_and_init_from_come_before_names():
    words = ["stage2", "manifest=/m", "cache=/c", "llm=tiny", "runs=s3://b/runs?region=x"]
    config = with_full_paths(load_config(TrainConfig, words))
    assert (config.run, config.init_from) == ("s3://b/runs/stage2?region=x", "s3://b/runs/stage1?region=x")
    config = with_full_paths(load_config(TrainConfig, [*words, "run=/r", "init_from=/one"]))
    assert (config.run, config.init_from) == ("/r", "/one")


def test_mix_of_ones_own_means_the_same_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for mix, expected in (
        ("my.yaml", f"{tmp_path}/my.yaml"),
        ("s3://b/my.yml?region=x", "s3://b/my.yml?region=x"),
        ("stage2", "stage2"),
        ("", ""),
    ):
        config = with_full_paths(TrainConfig(manifest="m", cache="c", llm="tiny", run="stage2", mix=mix))
        assert (config.mix, config.run) == (expected, f"{tmp_path}/stage2")


@pytest.mark.parametrize("content", ["llm: tiny\n", ""])
def test_run_without_steps_is_shown_with_its_step_alone(content, tmp_path, capsys):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(content)
    assert main(["runs", "list", f"runs={tmp_path}"]) == 0
    assert main(["runs", "compare", f"runs=[{tmp_path}/one,{tmp_path}/two]"]) == 0
    assert len(re.findall(r"^(?:one|two) +0  ", capsys.readouterr().out, re.MULTILINE)) == 4


def test_long_values_are_shown_whole(tmp_path, capsys):
    for name, mark in (("one", "§"), ("two", "¶")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(f"manifest: {300 * mark}\n")
    assert main(["runs", "compare", f"runs=[{tmp_path}/one,{tmp_path}/two]"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("§") == shown.count("¶") == 300


def test_list_has_a_line_per_run(stages, capsys):
    found = {summary.name: summary for summary in runs_list(RunsListConfig(runs=str(stages)))}
    assert {name: summary.step for name, summary in found.items()} == {
        "slow": 4,
        "stage1": 4,
        "stage2": 4,
        "stage3": 12,
    }
    lines = read_metrics(str(stages / "slow"))
    assert found["slow"].valid_loss == lines[-1]["valid_loss"] and found["stage2"].valid_loss is None
    assert found["slow"].best_valid_loss == min(line["valid_loss"] for line in lines if "valid_loss" in line)
    assert "4/4" in capsys.readouterr().out


def test_comparison_shows_the_keys_that_differ_and_no_others(stages, tmp_path):
    runs = [str(stages / "stage2"), str(stages / "slow")]
    differences = runs_compare(RunsCompareConfig(runs=runs, out=str(tmp_path / "x.html")))
    assert {row[0]: row[1:] for row in differences} == {
        "name": ["stage2", "slow"],
        "optim.lr": ["0.003", "0.001"],
        "run": runs,
        "valid_every": ["0", "2"],
        "valid_splits": ["[]", "['test']"],
    }
    page = (tmp_path / "x.html").read_text()
    assert "optim.lr" in page and page.count("data:image/png") == 1


@pytest.mark.parametrize("has_metrics", [True, False])
def test_runs_of_one_name_are_told_apart_by_their_folders(has_metrics, stages, tmp_path):
    runs = [str(tmp_path / place / "stage2") for place in "ab"]
    for run in runs:
        Path(run).mkdir(parents=True)
        for name in ["config.yaml", *["metrics.jsonl"] * has_metrics]:
            shutil.copy(stages / "stage2" / name, run)
    assert runs_compare(RunsCompareConfig(runs=runs, out=str(tmp_path / "x.html"))) == []
    page = (tmp_path / "x.html").read_text()
    assert all(run in page for run in runs) and page.count("data:image/png") == has_metrics


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["list", "runs=."], "no folder in it is a run"),
        (["compare", "runs=[a]"], "two runs are needed"),
        (["compare", "runs=[a,b]"], "a: no run there"),
    ],
)
def test_wrong_folders_give_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["runs", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


@pytest.mark.parametrize("file", ["metrics.jsonl", "config.yaml", "run.json", "checkpoints/000002/state.json"])
def test_a_damaged_file_of_a_run_is_named_with_exit_code_2(tmp_path, capsys, file):
    run = tmp_path / "runs" / "r"
    (run / "checkpoints" / "000002").mkdir(parents=True)
    (run / "config.yaml").write_text("steps: 2\n")
    (run / "run.json").write_text("{}")
    (run / "metrics.jsonl").write_text("")
    (run / "checkpoints" / "000002" / "state.json").write_text('{"step": 2}')
    (run / file).write_bytes(b"[1, {\n")
    assert main(["runs", "list", f"runs={tmp_path / 'runs'}"]) == 2
    told = capsys.readouterr().err
    assert f"{file}: damaged" in told and told.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "told"),
    [
        *(({name: None}, f"{name} is nan in a line") for name in IN_EVERY_LINE if name.endswith(("_task", "_part"))),
        ({"step": "x"}, "step is 'x' in a line"),
        ({"loss_by_task": {"asr": []}}, "loss_by_task of asr is [] in a line"),
        ({"skipped_steps": 0.5}, "skipped_steps is 0.5 in a line"),
        ([1], "not a JSON object a line"),
    ],
)
def test_a_line_of_metrics_lacks_no_number_that_all_have(tmp_path, line, told):
    whole = metrics_line(1, loss=None, loss_by_task={"asr": None})
    (tmp_path / "metrics.jsonl").write_text(f"{json.dumps(whole)}\n")
    assert len(read_metrics(str(tmp_path))) == 1
    (tmp_path / "metrics.jsonl").write_text(f"{json.dumps({**whole, **line} if isinstance(line, dict) else line)}\n")
    with pytest.raises(UserError, match=rf"metrics\.jsonl: damaged, {re.escape(told)}"):
        read_metrics(str(tmp_path))


@pytest.mark.parametrize("name", IN_EVERY_LINE)
def test_a_line_of_metrics_without_a_number_is_refused(tmp_path, name):
    line = metrics_line(1)
    del line[name]
    (tmp_path / "metrics.jsonl").write_text(f"{json.dumps(line)}\n")
    with pytest.raises(UserError, match=rf"metrics\.jsonl: damaged, {name} is None in a line"):
        read_metrics(str(tmp_path))
