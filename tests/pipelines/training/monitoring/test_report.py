"""Covers pipelines.interface.figures, pipelines.interface.page, pipelines.training.monitoring.figures,
pipelines.training.monitoring.step_timer.
"""

import json
import re
import shutil
import time
from dataclasses import asdict, replace
from html import unescape
from pathlib import Path

import pytest
import torch

from cluster.unit_queue import Attempt
from pipelines.cache.cost import read_encoding_cost
from pipelines.cache.plan import extend_plan, read_units
from pipelines.errors import JobIncompleteError
from pipelines.extraction.extract import ExtractReport
from pipelines.interface.config import load_config
from pipelines.interface.help import changed_keys
from pipelines.interface.version import product_version
from pipelines.manifest.tables import read_clips
from pipelines.runs.metrics import COMPUTE, STEP_PARTS, UPDATE, VALIDATION, WAIT, read_metrics
from pipelines.training.alarms import AlarmConfig
from pipelines.training.config import TrainConfig
from pipelines.training.monitoring.figures import draw_losses
from pipelines.training.monitoring.report import Outcome, write_train_report
from pipelines.training.monitoring.step_timer import StepTimer
from pipelines.training.monitoring.watch import reported
from pipelines.training.preflight import open_run
from pipelines.training.worker.loop import TrainWorker
from tests.pipelines.builders import config_of, make_worker, prepare_tones, train_here


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> TrainConfig:
    """A run of 6 steps with validation, alarms and a forecast, on a cache with a record of its extraction."""
    folder = tmp_path_factory.mktemp("trained")
    manifest, cache = prepare_tones(folder, num_clips=12), folder / "c"
    worker, report = make_worker(cache), ExtractReport()
    extend_plan(str(cache), read_clips(manifest), recipe=worker.config.recipe, shard_nbytes=1_500_000)
    for unit in read_units(str(cache)):
        report.add(worker.run(unit, Attempt()))
    (cache / "jobs").mkdir()
    (cache / "jobs" / "first.json").write_text(json.dumps({"report": asdict(report)}))
    keys = {"valid_splits": ["test"], "valid_every": 2, "alarms": AlarmConfig(data_wait_fraction=1e-9)}
    config = config_of((manifest, str(cache)), folder / "run", forecast_step_seconds=0.25, workers=2, **keys)
    train_here(config)
    return config


def page_of(config: TrainConfig) -> str:
    write_train_report(config, read_metrics(config.run))
    return unescape((Path(config.run) / "report.html").read_text())


@pytest.fixture(scope="module")
def page(trained) -> str:
    return page_of(trained)


def rows_of(page: str) -> dict[str, list[str]]:
    """The tables' rows by their first cell."""
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)]
    return {row[0]: row[1:] for row in rows if row}


def test_lines_say_where_the_time_goes_and_what_is_read(trained):
    lines = read_metrics(trained.run)
    worker = TrainWorker(trained, 0, 1, torch.device("cpu"))
    for step, line in enumerate(lines):
        parts = line["seconds_by_part"]
        assert line["step_seconds"] == pytest.approx(sum(parts[part] for part in STEP_PARTS))
        assert line["data_wait_fraction"] == pytest.approx(parts[WAIT] / line["step_seconds"])
        assert 0 < parts[COMPUTE] < line["step_seconds"] and line["peak_memory_mb"] > 100
        read = 1e6 * line["megabytes_per_second"] * line["step_seconds"]
        assert read == pytest.approx(worker.read_batch(step).nbytes)
    assert [VALIDATION in line["seconds_by_part"] for line in lines] == [False, True] * 3
    assert ["checkpoint" in line["seconds_by_part"] for line in lines] == [False, False, True, False, True, False]


def test_report_compares_the_forecast_with_what_came(trained, page):
    rows, lines = rows_of(page), read_metrics(trained.run)
    mean = sum(line["step_seconds"] for line in lines) / 6
    assert rows["seconds per step"] == ["0.25", f"{mean:,.4g}", f"{mean / 0.25 - 1:+.0%}"]
    assert rows["examples per second"][:2] == ["32", f"{8 / mean:,.4g}"]
    assert rows["device hours of the steps"][:2] == [f"{2 * 6 * each / 3600:,.4g}" for each in (0.25, mean)]
    waited = sum(line["seconds_by_part"][WAIT] for line in lines) / (6 * mean)
    assert rows["of the steps' time waiting for data"][1] == f"{waited:.1%}"


def test_report_shows_curves_alarms_times_and_keys(trained, page):
    rows, lines = rows_of(page), read_metrics(trained.run)
    assert page.count("data:image/png") == 3 and "6 of 6 steps, 2 workers. Written 20" in page
    assert page.count('<div class="wide"><img ') == 3  # a narrow screen scrolls a picture inside its box
    assert f"UTC by salmonn {product_version()}." in page
    (ringing,) = [line for line in lines if "alarms" in line]
    assert rows["1"] == [str(ringing["step"]), ringing["alarms"][0]]
    seconds = sum(line["seconds_by_part"][COMPUTE] for line in lines)
    assert rows["forward and backward"][0] == f"{seconds:,.1f}"
    assert rows["heard_seconds"][:2] == ["2.0", "30.0"] and rows["alarms.data_wait_fraction"][0] == "1e-09"
    assert "threads" not in rows
    best = min(line["valid_loss"] for line in lines if "valid_loss" in line)
    assert f"{best:.3f}" in page and f"{lines[-1]['loss']:.3f}" in page


def test_report_says_what_the_run_cost_at_the_stated_price(trained, page, tmp_path):
    assert "money at" not in page
    shutil.copytree(trained.run, tmp_path / "run")
    seconds = Outcome.of(read_metrics(trained.run)).seconds
    priced = page_of(replace(trained, run=str(tmp_path / "run"), price_per_hour=3600.0))
    assert "money at 3600 a device hour" in priced and f"{2 * seconds:,.2f}" in priced


def test_report_says_what_the_cache_saved(trained, page):
    cost = read_encoding_cost(trained.cache)
    training = 2 * Outcome.of(read_metrics(trained.run)).seconds / 3600
    online, once = 48 * cost.encode_seconds / 3600, 12 * cost.extract_seconds / 3600
    for name, encoding in (("encoders in every step", online), ("this cache, its 12 clips once", once)):
        assert rows_of(page)[name] == [f"{hours:,.4g}" for hours in (encoding, training, encoding + training)]
    assert f"{1 + online / training:.2f} times as long" in page
    assert f"after {12 * cost.extract_seconds / cost.encode_seconds:,.0f} examples" in page


def test_report_does_without_a_forecast_and_without_a_record_of_the_extraction(trained, tmp_path):
    shutil.copytree(trained.run, tmp_path / "run")
    page = page_of(replace(trained, run=str(tmp_path / "run"), cache=str(tmp_path), forecast_step_seconds=0.0))
    (came,) = rows_of(page)["seconds per step"]
    assert float(came) > 0 and "plan train" in page
    assert "saved" not in page


def test_run_that_fails_leaves_a_report_with_its_error(trained, tmp_path, capsys):
    config = replace(trained, run=str(tmp_path / "run"), max_skipped_steps=3, valid_every=0, valid_splits=[])
    open_run(config, pending=[])
    worker = TrainWorker(config, 0, 1, torch.device("cpu"))
    with torch.no_grad():
        worker.model.aligner.projection.bias[0] = float("nan")
    with pytest.raises(JobIncompleteError), reported([config]):
        worker.run()
    assert f"report: {config.run}/report.html" in capsys.readouterr().out
    page = unescape((tmp_path / "run" / "report.html").read_text())
    assert "2 of 6 steps" in page and "Ended early" in page and "not finite in 3 steps in a row" in page


def test_run_that_has_not_begun_leaves_none(trained, tmp_path):
    with pytest.raises(ValueError, match="no room"), reported([replace(trained, run=str(tmp_path / "run"))]):
        raise ValueError("no room")
    assert not (tmp_path / "run").exists()


def test_report_that_cannot_be_written_changes_no_ending(trained, tmp_path, capsys):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "first.json").write_text("{")
    config = replace(trained, cache=str(tmp_path))
    with reported([config]):
        pass
    with pytest.raises(JobIncompleteError, match="no room"), reported([config]):
        raise JobIncompleteError("no room")
    told = capsys.readouterr()
    lines = told.err.splitlines()
    assert not told.out and len(lines) == 2
    assert all(line.startswith(f"{config.run}/report.html could not be written: UserError") for line in lines)
    assert all("jobs/first.json: damaged, not JSON" in line for line in lines)


def test_alarms_are_numbered_among_all_lines_and_only_there(trained):
    lines = [line for line in read_metrics(trained.run) if "valid_loss" in line]
    ringing = [line | {"alarms": ["spike"]} for line in lines]
    held_out = [draw_losses(each, prefix="valid_", caption="") for each in (lines, ringing)]
    assert held_out[0] == held_out[1]
    assert draw_losses(lines, prefix="", caption="") != draw_losses(ringing, prefix="", caption="")


def test_timer_begins_anew_at_every_line():
    timer = StepTimer(torch.device("cpu"))
    for pause, nbytes in ((0.02, 1_000_000), (0.01, 500_000)):
        with timer.part(WAIT):
            time.sleep(pause)
        with timer.part(UPDATE):
            time.sleep(pause)
        timer.end_step(nbytes=nbytes)
    with timer.part(VALIDATION):
        time.sleep(0.05)
    numbers = timer.take()
    parts = numbers["seconds_by_part"]
    assert parts[WAIT] >= 0.03 <= parts[UPDATE] and parts[VALIDATION] >= 0.05
    assert 2 * numbers["step_seconds"] == pytest.approx(parts[WAIT] + parts[UPDATE])
    assert numbers["megabytes_per_second"] == pytest.approx(1.5 / (2 * numbers["step_seconds"]))
    timer.end_step(nbytes=0)
    with timer.part(WAIT):
        pass
    assert VALIDATION not in timer.take()["seconds_by_part"]


def test_keys_that_are_not_at_their_defaults_are_listed():
    words = ["manifest=m", "cache=c", "run=r", "llm=tiny", "read.threads=9", "splits=[train,dev]", "lora.rank=8"]
    changed = {key.name: value for key, value in changed_keys(load_config(TrainConfig, words))}
    assert changed == {"manifest": "m", "cache": "c", "run": "r", "llm": "tiny"} | {
        "read.threads": "9",
        "splits": "[train,dev]",
    }
