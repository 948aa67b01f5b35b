"""What an operator sees of caches and runs while jobs are at work, and in a pipe.

Covers pipelines.operations.top.cache, pipelines.operations.top.job_lines, pipelines.operations.top.run.
"""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cluster.unit_queue import Attempt, UnitResult
from pipelines import storage
from pipelines.cache.plan import extend_plan, read_units
from pipelines.cli import main
from pipelines.extraction.unit_log import UnitLog
from pipelines.inference.answers import AnswerStore
from pipelines.manifest.tables import read_clips
from pipelines.operations.top.cache import CacheWatch
from pipelines.operations.top.job_lines import JOB_NAME, RECENT_SECONDS, JobLines
from pipelines.operations.top.run import RunWatch
from pipelines.operations.top.top import cache_rows, run_rows
from pipelines.training.alarms import AlarmConfig
from pipelines.training.monitoring.metrics_log import MetricsLog
from tests import ROOT
from tests.pipelines.builders import config_of, make_worker, metrics_line, prepare_tones, train_here
from tests.s3_server import s3_server

NOW = datetime(2026, 11, 28, 12, 0, tzinfo=UTC).timestamp()


def job_name(seconds_ago: float) -> str:
    return datetime.fromtimestamp(NOW - seconds_ago, UTC).strftime(JOB_NAME)


def ended(seconds_ago: float) -> str:
    return datetime.fromtimestamp(NOW - seconds_ago, UTC).isoformat(timespec="seconds")


class Extraction:
    """Commits units one by one, as a job does."""

    def __init__(self, folder: Path, *, num_clips: int = 24, damaged: int = 1) -> None:
        self.cache = str(folder / "c")
        self.worker = make_worker(self.cache)
        self.plan(prepare_tones(folder, num_clips=num_clips, damaged=damaged))
        self.log = UnitLog(storage.join(self.cache, "jobs", datetime.now(UTC).strftime(JOB_NAME)))

    def plan(self, manifest: str) -> None:
        extend_plan(self.cache, read_clips(manifest), recipe=self.worker.config.recipe, shard_nbytes=1_500_000)
        self.units = list(read_units(self.cache))

    def commit(self, *places: int) -> None:
        for place in places:
            stats = self.worker.run(self.units[place], Attempt())
            self.log.add(UnitResult(self.units[place], stats, 1, 1.0))


def test_a_cache_is_seen_to_grow_with_its_speed_its_rejects_and_its_job(tmp_path: Path) -> None:
    job = Extraction(tmp_path)
    watch, last = CacheWatch(job.cache), len(job.units) - 1
    before = watch.look(time.time())
    assert (before.shards, before.planned_shards, before.clips, before.planned_clips) == (0, last + 1, 0, 24)
    assert before.newest is None and before.seconds_left is None and before.holders == []
    job.commit(0, last)
    with storage.held(job.cache):
        now = time.time()
        look = watch.look(now)
        assert look.shards == 2 and look.clips == len(job.units[0].clips) + len(job.units[last].clips)
        assert sum(look.rejects.values()) == 1 and look.rejects == {"length": 1}
        (holder,) = look.holders
        assert f"process {os.getpid()} on " in str(holder) and look.is_at_work
        assert look.newest and abs(now - look.newest) < 5
        seconds = sum(clip.seconds or 0 for clip in job.units[0].clips)
        assert look.hours * 3600 >= seconds > 0 and look.real_time > 0
        assert look.seconds_left == pytest.approx((24 - look.clips) / look.clips_per_second)
        rows = dict(cache_rows(look, now))
        assert rows["shards"].startswith(f"2 of {last + 1} (") and rows["rejects"].endswith("1 × length")
        assert "× real time" in rows["speed"] and rows["speed"].endswith(" left")
    assert watch.look(now + 2 * RECENT_SECONDS).clips_per_second == 0
    storage.delete_file(storage.join(job.cache, "index", f"{job.units[last].unit_id}.parquet"))
    assert watch.look(now).rejects == {} and watch.look(now).shards == 1


def test_a_plan_that_grows_while_it_is_looked_at_is_read_anew(tmp_path: Path) -> None:
    job = Extraction(tmp_path, num_clips=12, damaged=0)
    watch = CacheWatch(job.cache)
    planned = len(job.units)
    job.plan(prepare_tones(tmp_path / "more", num_clips=24))
    look = watch.look(NOW)
    assert look.planned_shards == len(job.units) > planned and look.planned_clips == 24


def test_lines_of_the_newest_job_count_as_long_as_they_are_recent(tmp_path: Path) -> None:
    jobs = JobLines(str(tmp_path))
    assert jobs.read(NOW) == [] and jobs.newest is None and jobs.span(NOW) == RECENT_SECONDS
    older = storage.LineFile(f"{tmp_path}/{job_name(5_000)}/000000.jsonl")
    older.append({"ended": ended(700), "unit": 1})
    older.append({"ended": ended(500), "unit": 2})
    older.append({"ended": ended(400), "unit": 3, "error": "no such file"})
    assert [line["unit"] for line in jobs.read(NOW)] == [2] and jobs.failed == 1
    assert jobs.newest == NOW - 400 and jobs.span(NOW) == RECENT_SECONDS
    more = storage.LineFile(f"{tmp_path}/{job_name(5_000)}/000001.jsonl")
    older.append({"ended": ended(300), "unit": 4})
    more.append({"ended": ended(200), "unit": 5})
    assert [line["unit"] for line in jobs.read(NOW)] == [2, 4, 5]
    newer = storage.LineFile(f"{tmp_path}/{job_name(60)}/000000.jsonl")
    newer.append({"ended": ended(10), "unit": 6})
    assert [line["unit"] for line in jobs.read(NOW)] == [6]
    assert (jobs.failed, jobs.newest, jobs.span(NOW)) == (0, NOW - 10, 60)
    for file in (older, more, newer):
        file.close()


def test_lines_in_an_object_store_are_followed_too() -> None:
    with s3_server("bucket") as server:
        jobs = server.uri("bucket/c/jobs")
        lines = JobLines(jobs)
        assert lines.read(NOW) == []
        file = storage.LineFile(storage.join(jobs, job_name(90), "000000.jsonl"))
        for unit in (1, 2):
            file.append({"ended": ended(10), "unit": unit})
            file.flush()
            assert [line["unit"] for line in lines.read(NOW)] == list(range(1, unit + 1))
        assert lines.span(NOW) == 90
        file.close()


def test_a_run_is_seen_with_its_losses_its_alarms_and_its_answers(corpus: tuple[str, str], tmp_path: Path) -> None:
    config = config_of(corpus, tmp_path / "run", alarms=AlarmConfig(data_wait_fraction=1e-9))
    train_here(config)
    watch = RunWatch(config.run)
    now = time.time()
    look = watch.look(now)
    assert (look.line["step"], look.steps, look.answers, look.holders) == (6, 6, 0, [])
    assert look.alarms[0].startswith("step 5: data wait: ") and look.newest and abs(now - look.newest) < 60
    rows = dict(run_rows(look, now))
    assert rows["step"].startswith("6 of 6 (100.0%), written ") and "answers" not in rows
    assert re.match(r"\d\.\d{3} \(audiocaption \d\.\d{3}\)$", rows["loss"])
    row = {"clip_id": "a", "question": "?", "answer": "x", "tokens": 1, "seconds": 0.1}
    AnswerStore(f"{config.run}/answers/0123").write("a", [row, row])
    AnswerStore(f"{config.run}/answers/4567").write("a", [row])
    job = storage.LineFile(f"{config.run}/answers/jobs/{job_name(100)}/000000.jsonl")
    job.append({"ended": ended(20), "unit": "a", "answers": 2})
    job.append({"ended": ended(10), "unit": "b", "answers": 1})
    job.append({"ended": ended(5), "unit": "c", "error": "no"})
    job.close()
    with storage.held(f"{config.run}/answers"):
        look = watch.look(NOW)
        rows = dict(run_rows(look, NOW))
    assert (look.answers, look.answers_per_second, look.failed) == (3, 0.03, 1)
    assert rows["answers"] == "3 stored, 0.03 answers/s over the last 1 min 40 s, the last 5 s ago"
    assert str(os.getpid()) in rows["answering"] and rows["job"] == "none is at work"


def test_a_run_that_goes_back_to_a_checkpoint_is_counted_anew(corpus: tuple[str, str], tmp_path: Path) -> None:
    config = config_of(corpus, tmp_path / "run")
    train_here(config)
    log = MetricsLog(config, ["audiocaption"], first_step=4)
    log.append(metrics_line(5, loss_by_task={"audiocaption": 1.0}, skipped_steps=2, examples_per_second=4.0))
    watch = RunWatch(config.run)
    with storage.held(config.run):
        look = watch.look(time.time())
    assert (look.line["step"], look.skipped, look.seconds_left) == (5, 2, 2.0)
    log.close()
    log = MetricsLog(config, ["audiocaption"], first_step=2)
    look = watch.look(time.time())
    assert (look.line["step"], look.skipped, look.seconds_left) == (2, 0, None)
    log.close()


def test_in_a_pipe_all_folders_are_printed_once(corpus: tuple[str, str], tmp_path: Path, capsys) -> None:
    config = config_of(corpus, tmp_path / "run", steps=1)
    train_here(config)
    assert main(["top", f"cache=[{corpus[1]},{corpus[1]}]", f"run={config.run}"]) == 0
    said = capsys.readouterr().out
    assert said.count(f"cache {corpus[1]}\n") == 2 and said.count("of 12, ") == 2
    assert f"run {config.run}\n" in said and "1 of 1 (100.0%)" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "cache=… or run=… is needed"),
        (["cache=/nowhere"], "/nowhere: no feature cache there"),
        (["run=/nowhere"], "/nowhere: no run there"),
        (["run=/nowhere", "seconds=0"], "seconds=0"),
    ],
)
def test_what_is_not_there_is_one_line(words: list[str], message: str, capsys) -> None:
    assert main(["top", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_terminal_shows_what_comes_until_it_is_interrupted(tmp_path: Path) -> None:
    job = Extraction(tmp_path)
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "pipelines", "top", f"cache={job.cache}", "seconds=0.2"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        # Started in the background, pytest ignores SIGINT, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    os.close(theirs)
    try:
        assert "none is at work" in wait_for(ours, f"0 of {len(job.units)}")
        job.commit(0)
        with storage.held(job.cache):
            assert f"process {os.getpid()}" in wait_for(ours, "× real time")
        units = Path(job.cache) / "units"
        units.rename(units.with_name("away"))
        units.write_text("a file in a folder's place")
        wait_for(ours, "not read: ")
        units.unlink()
        units.with_name("away").rename(units)
        wait_for(ours, "none is at work")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def wait_for(terminal: int, word: str) -> str:
    """Return what a terminal shows until it shows a word."""
    said, deadline = "", time.monotonic() + 60
    while word not in said:
        assert time.monotonic() < deadline, said
        if select.select([terminal], [], [], 1.0)[0]:
            said += os.read(terminal, 65_536).decode(errors="replace")
    return said
