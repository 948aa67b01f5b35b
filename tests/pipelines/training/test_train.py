"""Covers cluster.failures, pipelines.training.worker.start."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from ray.exceptions import RayActorError

from pipelines.errors import JobIncompleteError, UserError
from pipelines.interface.config import read_saved_config
from pipelines.training.train import _describe_failures, _report, train, train_in_turn
from tests.pipelines.builders import config_of, losses, train_here, valid_losses


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


@pytest.mark.ray
def test_a_run_that_has_ended_goes_on_with_more_steps(corpus, unbroken, tmp_path, ray_session, capsys):
    shutil.copytree(unbroken, tmp_path / "run")
    more = config_of(corpus, tmp_path / "run", valid_splits=["test"], valid_every=2, steps=9)
    assert train(more).steps == 9
    told = capsys.readouterr().out
    assert f"{tmp_path}/run: goes on to 9 steps; it was a run of 6" in told and "steps=MORE goes on from here" in told
    assert losses(more.run)[:6] == losses(unbroken) and len(losses(more.run)) == 9
    assert read_saved_config(f"{more.run}/config.yaml")["steps"] == 9
    with pytest.raises(UserError, match=r"steps=6: .*/run is a run of 9 steps; so many or more continue it"):
        train(replace(more, steps=6))
    assert train(more).steps == 9 and "complete, nothing to do (9 steps)" in capsys.readouterr().out


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


def test_a_run_without_its_last_checkpoint_is_not_done(corpus, tmp_path):
    config = config_of(corpus, tmp_path / "run", steps=2)
    train_here(config)
    with pytest.raises(JobIncompleteError, match=r"run: ended at step \[2\] of 3$"):
        _report(replace(config, steps=3), 8)
