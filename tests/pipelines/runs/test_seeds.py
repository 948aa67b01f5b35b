"""Covers pipelines.runs.delete, pipelines.runs.evaluations."""

import json
import math
import re
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.cli import main
from pipelines.runs.evaluations import read_scores
from pipelines.runs.seeds import group_by_seed, spread_rows
from tests.pipelines.builders import metrics_line


def write_run(folder: Path, *, seed: int, loss: float, wer: float | None = None, **keys: object) -> Path:
    """Write a run of two steps, begun by version 0.0.7."""
    (folder / "checkpoints" / "000002").mkdir(parents=True)
    (folder / "checkpoints" / "000002" / "state.json").write_text('{"step": 2}')
    config = {"run": str(folder), "steps": 2, "seed": seed, **keys}
    (folder / "config.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in config.items()))
    (folder / "run.json").write_text('{"version": "0.0.7"}')
    line = metrics_line(2, loss=loss, loss_by_task={"asr": loss + 1, "aqa": loss - 1})
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    if wer is not None:
        (folder / "evaluation" / "test").mkdir(parents=True)
        scores = [{"name": "wer", "value": wer}, {"name": "cer", "value": None}]
        tasks = [{"own": {"task": "asr", "test_set": "c test", "scores": scores}, "silence": None, "other": None}]
        (folder / "evaluation" / "test" / "scores.json").write_text(json.dumps({"step": 2, "tasks": tasks}))
    return folder


def test_runs_of_one_kind_are_those_that_differ_by_seed_and_place_alone():
    configs = {
        "a": {"seed": "0", "run": "a", "optim.lr": "1"},
        "b": {"seed": "1", "run": "b", "optim.lr": "1"},
        "c": {"seed": "1", "run": "c", "optim.lr": "2"},
        "d": {"seed": "1", "run": "d", "optim.lr": "2"},
    }
    assert group_by_seed(configs) == [["a", "b"]]
    rows = spread_rows([["a", "b"]], {"a": {"loss": 1.0, "only a": 1.0}, "b": {"loss": 2.0}})
    assert rows == [["a, b", "loss", "1.500", "0.707", "2"]]
    unknown = spread_rows([["a", "b"]], {"a": {"loss": math.nan}, "b": {"loss": math.nan}})
    assert unknown == [["a, b", "loss", "—", "—", "2"]]


def test_list_shows_scores_sizes_version_and_the_spread_over_seeds(tmp_path, capsys):
    for seed, loss, wer in ((0, 1.0, 0.1), (1, 2.0, 0.3)):
        write_run(tmp_path / f"run{seed}", seed=seed, loss=loss, wer=wer)
    (tmp_path / "run0" / "big").write_bytes(bytes(2_500_000))
    write_run(tmp_path / "other", seed=0, loss=5.0, lr=1)
    assert main(["runs", "list", f"runs={tmp_path}"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^run0 .* 2\.5 +0\.0\.7$", shown, re.MULTILINE)
    assert re.search(r"^run0 +c test asr wer +0\.100$", shown, re.MULTILINE)
    assert re.search(r"^run0, run1 +loss +1\.500 +0\.707 +2 *$", shown, re.MULTILINE)
    assert re.search(r"^ +loss of asr +2\.500 +0\.707 +2 *$", shown, re.MULTILINE)
    assert re.search(r"^ +c test asr wer +0\.200 +0\.141 +2 *$", shown, re.MULTILINE)


def test_comparison_shows_losses_by_task_and_scores_beside_each_other(tmp_path, capsys):
    runs = [write_run(tmp_path / name, seed=0, loss=2.0, wer=wer) for name, wer in (("a", 0.25), ("b", None))]
    page = tmp_path / "x.html"
    assert main(["runs", "compare", f"runs=[{runs[0]},{runs[1]}]", f"out={page}"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^loss of asr +3\.000 +3\.000 *$", shown, re.MULTILINE)
    assert re.search(r"^c test asr wer +0\.250 *$", shown, re.MULTILINE)
    assert "<td>c test asr wer</td><td>0.250</td><td></td>" in page.read_text()


@pytest.mark.parametrize("content", ["[", "[]", '{"tasks": [{"task": "asr"}]}', '{"tasks": 3}'])
def test_damaged_scores_are_named(content, tmp_path):
    write_run(tmp_path / "a", seed=0, loss=1.0, wer=0.5)
    (tmp_path / "a" / "evaluation" / "test" / "scores.json").write_text(content)
    with pytest.raises(ValueError, match=r"evaluation/test/scores\.json: damaged"):
        read_scores(str(tmp_path / "a"))


def test_a_run_is_removed_only_if_told_and_nothing_outside_it(tmp_path, capsys):
    run, outside = write_run(tmp_path / "a", seed=0, loss=1.0), tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (run / "link").symlink_to(outside)
    assert main(["runs", "delete", f"run={run}"]) == 2
    told = capsys.readouterr().err
    assert f"{run}: 1 checkpoint, 0.0 MB; to remove all of it: salmonn runs delete run={run} yes=true" in told
    assert run.is_dir()
    assert main(["runs", "delete", f"run={run}", "yes=true"]) == 0
    assert not run.exists() and (outside / "kept").read_text() == "kept"


def test_a_run_that_is_held_is_not_removed(tmp_path, capsys):
    run = write_run(tmp_path / "a", seed=0, loss=1.0)
    with storage.held(str(run)):
        assert main(["runs", "delete", f"run={run}", "yes=true"]) == 2
    assert "another job is at work there" in capsys.readouterr().err and (run / "config.yaml").exists()


def test_what_is_no_run_or_a_link_is_not_removed(tmp_path, capsys):
    run = write_run(tmp_path / "runs" / "a", seed=0, loss=1.0)
    assert main(["runs", "delete", f"run={tmp_path}/runs", "yes=true"]) == 2
    assert "no run there" in capsys.readouterr().err
    (tmp_path / "link").symlink_to(run)
    assert main(["runs", "delete", f"run={tmp_path}/link", "yes=true"]) == 2
    assert f"a link to {run}; name that folder" in capsys.readouterr().err and run.is_dir()
