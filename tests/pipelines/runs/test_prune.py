"""Covers pipelines.runs.delete, pipelines.runs.evaluations."""

import json
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.cli import main
from pipelines.runs.folder import complete_steps
from tests.pipelines.builders import config_of, fill, make_worker, prepare_tones, train_here


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    manifest = prepare_tones(folder, num_clips=6)
    fill(folder / "cache", manifest, make_worker(folder / "cache"))
    train_here(config_of((manifest, str(folder / "cache")), folder / "runs" / "a", steps=5, checkpoint_every=1))
    return folder / "runs" / "a"


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A run with checkpoints 1 to 5, of which 2 has the lowest held-out loss."""
    run = tmp_path / "runs" / "a"
    for path in trained.rglob("*"):
        if path.is_file():
            target = run / path.relative_to(trained)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    for step in range(1, 6):
        state = run / "checkpoints" / f"{step:06d}" / "state.json"
        content = json.loads(state.read_text())
        state.write_text(json.dumps({**content, "valid_loss": 1.0 + abs(step - 2), "held_out": "ab"}))
    return run


def prune(run, *keys) -> int:
    return main(["runs", "prune", f"run={run}", *keys])


def test_best_and_newest_stay_and_the_bytes_of_the_others_are_freed(run, capsys):
    before = storage.folder_nbytes(str(run))
    assert prune(run, "dry_run=true") == 0
    told = capsys.readouterr().out
    assert "3 checkpoints, " in told and "would be removed" in told
    assert complete_steps(str(run)) == [1, 2, 3, 4, 5] and storage.folder_nbytes(str(run)) == before
    assert prune(run) == 0
    assert complete_steps(str(run)) == [2, 5]
    shown = capsys.readouterr().out
    assert f"3 checkpoints, {(before - storage.folder_nbytes(str(run))) / 1e6:.1f} MB, removed" in shown
    assert "checkpoint 2 stays: of the lowest held-out loss" in shown and "checkpoint 5 stays: the newest" in shown


def test_a_count_keeps_so_many_of_the_newest_and_the_best(run):
    assert prune(run, "keep=2") == 0
    assert complete_steps(str(run)) == [2, 4, 5]


def test_what_another_run_started_from_or_an_evaluation_scored_stays(run, capsys):
    after = run.parent / "b"
    after.mkdir()
    (after / "start.json").write_text(json.dumps({"init_from": str(run), "step": 1}))
    (run.parent / "c").mkdir()
    (run.parent / "c" / "start.json").write_text(json.dumps({"init_from": str(after), "step": 4}))
    scores = run / "evaluation" / "test" / "scores.json"
    scores.parent.mkdir(parents=True)
    scores.write_text(json.dumps({"step": 3, "tasks": []}))
    assert prune(run) == 0
    assert complete_steps(str(run)) == [1, 2, 3, 5]
    shown = capsys.readouterr().out
    assert "checkpoint 1 stays: b started from it" in shown and "checkpoint 3 stays: an evaluation scored it" in shown


def test_what_a_killed_job_left_goes_too(run, capsys):
    (run / "checkpoints" / "000004" / "state.json").unlink()
    assert prune(run) == 0
    assert "2 checkpoints and 1 unfinished, " in capsys.readouterr().out
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["000002", "000005"]


def test_a_run_that_is_held_is_left_alone(run, capsys):
    with storage.held(str(run)):
        assert prune(run) == 2
    assert "another job is at work there" in capsys.readouterr().err
    assert complete_steps(str(run)) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("keep", ["0", "best", "-1", "1.5"])
def test_keys_that_mean_nothing_are_refused(run, keep, capsys):
    assert prune(run, f"keep={keep}") == 2
    assert f"keep={keep}: must be best,last" in capsys.readouterr().err


def test_a_damaged_start_is_named_and_nothing_goes(run, capsys):
    (run.parent / "b").mkdir()
    (run.parent / "b" / "start.json").write_text("[]")
    assert prune(run) == 2
    assert "b/start.json: damaged" in capsys.readouterr().err
    assert complete_steps(str(run)) == [1, 2, 3, 4, 5]
