"""Covers cluster.actor_state, pipelines.extraction.actor, pipelines.extraction.closing_report,
pipelines.extraction.config, pipelines.extraction.messages, pipelines.extraction.rejects,
pipelines.extraction.unit_log.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from cluster.limits import QueueLimits
from cluster.unit_queue import UnitResult
from pipelines import storage
from pipelines.cache.cost import read_encoding_cost
from pipelines.cache.index import ShardInfo, committed_units
from pipelines.cache.reader import FeatureCache
from pipelines.cli import main
from pipelines.errors import JobIncompleteError
from pipelines.extraction.config import ExtractConfig
from pipelines.extraction.extract import extract
from pipelines.extraction.messages import UnitStats
from pipelines.extraction.rejects import RejectLimit
from pipelines.extraction.unit_log import UnitLog, read_unit_log
from tests import ROOT
from tests.pipelines.builders import prepare_tones, shard_digests
from tests.toy import write_tones

pytestmark = pytest.mark.ray


def config_of(manifest, cache, **keys) -> ExtractConfig:
    limits = QueueLimits(max_tries=2)
    return ExtractConfig(
        **{"manifest": str(manifest), "cache": str(cache), "whisper": "tiny", "beats": "tiny"} | keys, limits=limits
    )


def extract_in_small_shards(manifest, cache, **keys):
    """Shards of about two clips."""
    return extract(config_of(manifest, cache, shard_megabytes=1, **keys))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> str:
    return prepare_tones(tmp_path_factory.mktemp("tones"), num_clips=24, damaged=1)


@pytest.fixture(scope="module")
def undisturbed(manifest, tmp_path_factory, ray_session) -> Path:
    cache = tmp_path_factory.mktemp("undisturbed")
    report = extract_in_small_shards(manifest, cache, workers=1)
    assert (report.clips, report.rejects) == (23, 1) and report.units == report.planned_units >= 10
    return cache


def test_second_run_does_no_work_and_needs_no_cluster(manifest, undisturbed, monkeypatch, capsys):
    monkeypatch.setattr("pipelines.extraction.extract.connect", lambda config: pytest.fail("a cluster was asked for"))
    before = shard_digests(undisturbed)
    report = extract_in_small_shards(manifest, undisturbed)
    assert (report.units, report.clips) == (0, 0)
    assert "complete, nothing to do" in capsys.readouterr().out
    assert shard_digests(undisturbed) == before


def test_two_workers_write_the_same_bytes_as_one(manifest, undisturbed, tmp_path, ray_session):
    extract_in_small_shards(manifest, tmp_path, workers=2)
    assert shard_digests(tmp_path) == shard_digests(undisturbed)


def test_every_run_leaves_a_record(undisturbed):
    records = [json.loads(path.read_text()) for path in (undisturbed / "jobs").glob("*.json")]
    assert records[0]["report"]["clips"] == 23 and records[0]["report"]["parts"]["whisper"] > 0
    assert records[0]["report"]["devices"]
    assert records[0]["environment"]["versions"]["torch"]
    assert "shard_megabytes: 1" in (undisturbed / "extract.yaml").read_text()


def worker_pids(parent: int) -> list[int]:
    """Processes of encoding actors below a process, by the title that Ray gives them."""
    listing = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listing.splitlines()[1:]]
    parents = {int(pid): int(above) for pid, above, _ in rows}

    def below(pid: int) -> bool:
        while pid in parents:
            pid = parents[pid]
            if pid == parent:
                return True
        return False

    return [int(pid) for pid, _, title in rows if title.startswith("ray::ExtractActor") and below(int(pid))]


def wait_for(condition, *, seconds: float = 300.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def test_killed_worker_is_replaced_and_nothing_is_lost(manifest, undisturbed, tmp_path, ray_session):
    killed = []

    def kill_one_worker() -> None:
        wait_for(lambda: committed_units(str(tmp_path)))
        for pid in wait_for(lambda: worker_pids(os.getpid())):
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    killer = threading.Thread(target=kill_one_worker)
    killer.start()
    report = extract_in_small_shards(manifest, tmp_path, workers=1)
    killer.join()
    assert killed and report.actor_deaths >= 1 and report.units == report.planned_units
    assert shard_digests(tmp_path) == shard_digests(undisturbed)


def test_killed_job_continues_and_gives_the_same_bytes(manifest, undisturbed, tmp_path, ray_session):
    words = [
        f"manifest={manifest}",
        f"cache={tmp_path}",
        "whisper=tiny",
        "beats=tiny",
        "shard_megabytes=1",
        "workers=1",
    ]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    job = subprocess.Popen(
        [sys.executable, "-m", "pipelines", "extract", *words, "ray.address=local"], cwd=ROOT, env=environment
    )
    wait_for(lambda: len(committed_units(str(tmp_path))) >= 2)
    worker = wait_for(lambda: worker_pids(job.pid))[0]
    job.send_signal(signal.SIGKILL)
    job.wait()
    wait_for(lambda: not Path(f"/proc/{worker}").exists())
    left = committed_units(str(tmp_path))
    report = extract_in_small_shards(manifest, tmp_path, workers=1)
    assert report.units == report.planned_units - len(left) > 0
    assert shard_digests(tmp_path).items() >= shard_digests(undisturbed).items()
    assert storage.list_names(str(tmp_path / "shards")) == storage.list_names(str(undisturbed / "shards"))
    assert FeatureCache(str(tmp_path)).index.equals(FeatureCache(str(undisturbed)).index)


def test_cache_of_another_recipe_is_refused_with_the_difference(manifest, undisturbed, capsys):
    words = [f"manifest={manifest}", f"cache={undisturbed}", "whisper=tiny"]
    assert main(["extract", *words, "beats=tiny", "codec=int8"]) == 2
    assert "codec is 'float16' there and 'int8' here" in capsys.readouterr().err
    assert main(["extract", *words, "beats=none"]) == 2
    error = capsys.readouterr().err
    assert "streams.audio" in error and error.count("\n") == 1


def test_too_many_rejects_end_the_job_with_exit_code_1(tmp_path, ray_session, capsys):
    manifest = prepare_tones(tmp_path / "tones", num_clips=8, damaged=4)
    words = [f"manifest={manifest}", f"cache={tmp_path}/c", "whisper=tiny", "beats=tiny", "workers=1"]
    assert main(["extract", *words, "max_reject_fraction=0.25"]) == 1
    assert "of 8 clips were rejected, more than max_reject_fraction=0.25" in capsys.readouterr().err
    assert main(["extract", *words, "max_reject_fraction=0.25"]) == 1  # still too many, whatever was committed
    assert main(["extract", *words, "max_reject_fraction=0.5"]) == 0
    write_tones(tmp_path / "tones" / "audio", [1.0 + 0.25 * (number % 4) for number in range(8)])
    assert main(["extract", *words, "retry_rejects=true"]) == 0
    assert FeatureCache(f"{tmp_path}/c").index.num_rows == 8
    assert main(["extract", *words, "max_reject_fraction=0"]) == 0


def test_unit_that_cannot_be_written_is_reported_and_the_rest_is_done(manifest, tmp_path, ray_session):
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "000001.parquet").mkdir()
    with pytest.raises(JobIncompleteError, match=r"1 shards failed.*\n.*000001"):
        extract_in_small_shards(manifest, tmp_path, workers=1)
    done = committed_units(str(tmp_path))
    (tmp_path / "index" / "000001.parquet").rmdir()
    report = extract_in_small_shards(manifest, tmp_path, workers=1)
    assert report.units == 1 and 1 not in done


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["whisper=absent", "beats=tiny"], "absent: no such folder"),
        (["whisper=tiny", "beats=absent.pt"], "absent.pt: no such file"),
        (["whisper=tiny", "beats=tiny", "manifest=absent"], "absent: no manifest there"),
        (["whisper=tiny", "beats=tiny", "codec=int4"], "'int4'"),
        (["whisper=tiny", "beats=tiny", "threads=0"], "threads=0: must be 1 or more"),
    ],
)
def test_wrong_keys_give_one_line_and_exit_code_2(manifest, tmp_path, keys, message, capsys):
    assert main(["extract", f"manifest={manifest}", f"cache={tmp_path}/c", *keys]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


COMMAND_LINE = (
    "import sys; from pipelines.cli import main; code = main(); sys.exit(3 if 'torch' in sys.modules else code)"
)


def test_command_line_has_the_recipe_found_in_another_process(manifest, undisturbed):
    command = [sys.executable, "-c", COMMAND_LINE, "extract", f"manifest={manifest}", f"cache={undisturbed}"]
    run = partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, check=False)
    again = run([*command, "whisper=tiny", "beats=tiny"])
    assert again.returncode == 0 and "complete, nothing to do" in again.stdout, again.stderr
    wrong = run([*command, "whisper=tiny", "beats=absent.pt"])
    assert wrong.returncode == 2 and "absent.pt: no such file" in wrong.stderr
    assert wrong.stderr.count("\n") == 1


def test_cache_info_shows_counts_and_reasons(undisturbed, capsys):
    assert main(["cache", "info", f"cache={undisturbed}"]) == 0
    shown = capsys.readouterr().out
    assert "complete" in shown and "23 of 24 planned" in shown and "tone-23.wav" in shown
    assert main(["cache", "info", "cache=absent"]) == 2


def test_every_unit_and_the_outcome_are_recorded(undisturbed):
    (page,) = (undisturbed / "jobs").glob("*.html")
    log = read_unit_log(str(page.with_suffix("")))
    assert log["unit"].to_pylist() == sorted(committed_units(str(undisturbed)))
    assert sum(log["clips"].to_pylist()) == 23 and sum(log["rejects"].to_pylist()) == 1
    nbytes = {int(shard.stem): shard.stat().st_size for shard in (undisturbed / "shards").glob("*.tar")}
    assert dict(zip(log["unit"].to_pylist(), log["nbytes"].to_pylist(), strict=True)) == nbytes
    lowest = min(log["lowest_snr_db"].to_pylist())
    report = json.loads(page.with_suffix(".json").read_text())["report"]
    assert 60 < lowest < 80 and report["lowest_snr_db"] == lowest and f"{lowest:.1f}" in page.read_text()
    assert dict(log["parts"][0].as_py())["whisper"] > 0 and set(log["attempt"].to_pylist()) == {1}
    cost = read_encoding_cost(str(undisturbed))
    assert cost.clips == 23 and 0 < cost.encode_seconds <= cost.extract_seconds < 60
    text = page.read_text()
    assert "24" in text and "23, of which 1 rejected" not in text and "24, of which 1 rejected" in text
    assert text.count("data:image/png") == 2


def test_records_of_units_are_written_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.extraction.unit_log.UNITS_PER_FILE", 4)
    log = UnitLog(str(tmp_path))
    for unit in range(10):
        stats = UnitStats(
            ShardInfo(unit=unit, clips=2, rejects=0, seconds=20.0, nbytes=1_000), 1.5, "cpu", {"write": 0.5}
        )
        log.add(UnitResult(unit=None, value=stats, attempt=1, seconds=1.6))
        assert len(log._rows) < 4
    assert len(storage.list_names(str(tmp_path))) == 2
    log.flush()
    assert read_unit_log(str(tmp_path))["unit"].to_pylist() == list(range(10))


@pytest.mark.parametrize(
    ("clips", "rejects", "stops"),
    [
        (2_000, 1_000, True),  # half of the first clips
        (1_999, 90, False),  # too few to judge by
        (2_000, 120, False),  # one damaged recording of 120 segments
        (2_000, 160, True),
        (20_000, 1_000, False),  # just what is allowed
        (20_000, 1_200, True),
        (40_000, 5_001, True),  # more than can still be made good
    ],
)
def test_too_many_rejects_are_seen_early(clips, rejects, stops):
    limit = RejectLimit(fraction=0.05, planned=100_000, known=0)
    assert (limit.exceeded(clips=clips, rejects=rejects) is not None) == stops


def test_job_with_hopeless_clips_stops_long_before_its_limit_is_reached(tmp_path, ray_session, monkeypatch, capsys):
    monkeypatch.setattr("pipelines.extraction.rejects.EARLY_CLIPS", 8)
    manifest = prepare_tones(tmp_path / "tones", num_clips=80)
    for file in (tmp_path / "tones" / "audio").iterdir():
        file.write_bytes(file.read_bytes()[:1000])
    words = [f"manifest={manifest}", f"cache={tmp_path}/c", "whisper=tiny", "beats=tiny", "workers=1"]
    assert main(["extract", *words, "shard_megabytes=1", "max_reject_fraction=0.2"]) == 1
    error = capsys.readouterr().err
    seen = int(re.search(r"of the first (\d+) clips of this run were rejected", error).group(1))
    assert 8 <= seen < 16


def test_job_whose_codec_loses_too_much_ends_at_once(tmp_path, ray_session, capsys):
    manifest = prepare_tones(tmp_path / "tones", num_clips=8)
    words = [f"manifest={manifest}", f"cache={tmp_path}/c", "whisper=tiny", "beats=tiny", "workers=1"]
    words += ["codec=int8", "shard_megabytes=1"]
    assert main(["extract", *words, "min_fidelity_db=80"]) == 1
    error = capsys.readouterr().err
    assert "comes back from int8" in error and "below min_fidelity_db=80" in error
    assert committed_units(f"{tmp_path}/c") == frozenset()
    (record,) = (tmp_path / "c" / "jobs").glob("*.json")
    assert json.loads(record.read_text())["report"]["lowest_snr_db"] is None
