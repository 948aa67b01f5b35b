"""Covers pipelines.interface.progress."""

import json
import time

from pipelines.interface.progress import Phase
from pipelines.runs.metrics import read_metrics
from pipelines.training.alarms import AlarmConfig
from pipelines.training.monitoring.watch import watched
from tests.pipelines.builders import config_of, metrics_line, train_here


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


def test_a_damaged_line_ends_neither_the_display_nor_the_job(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pipelines.training.monitoring.watch.LOOK_SECONDS", 0.05)
    config = config_of(corpus, tmp_path / "run")
    train_here(config)
    phase = Phase("train", "steps", 9, None)
    with watched([config], phase), (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7}\n')
        file.flush()
        deadline = time.monotonic() + 30
        while "damaged" not in (told := capsys.readouterr().err) and time.monotonic() < deadline:
            time.sleep(0.05)
        file.write(json.dumps(metrics_line(8)) + "\n")
    assert "the progress that is shown lacks some" in told and "metrics.jsonl: damaged" in told
    assert phase.done == 8
