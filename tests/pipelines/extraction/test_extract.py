"""Covers cluster.actor_state, pipelines.extraction.actor, pipelines.extraction.closing_report,
pipelines.extraction.config, pipelines.extraction.messages, pipelines.extraction.rejects,
pipelines.extraction.unit_log, pipelines.manifest.sources.
"""

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from cluster.limits import QueueLimits
from cluster.unit_queue import Attempt, FailedUnit, NotHereError, UnitResult
from pipelines import storage
from pipelines.cache.cost import read_encoding_cost
from pipelines.cache.index import ShardInfo, committed_units, read_rejects
from pipelines.cache.plan import ExtractUnit, extend_plan, read_units
from pipelines.cache.reader import FeatureCache
from pipelines.cli import main
from pipelines.errors import JobIncompleteError
from pipelines.extraction.closing_report import write_closing_report
from pipelines.extraction.config import ExtractConfig
from pipelines.extraction.extract import extract
from pipelines.extraction.messages import Forecast, UnitStats
from pipelines.extraction.rejects import RejectLimit
from pipelines.extraction.unit_log import UNIT_SCHEMA, UnitLog, read_unit_log, unit_lines
from pipelines.extraction.worker import ExtractWorker
from pipelines.interface.version import product_version
from pipelines.manifest.corpora.table import TableConfig, prepare_table
from pipelines.manifest.tables import read_clips
from tests import ROOT
from tests.pipelines.builders import make_worker, prepare_tones, shard_digests
from tests.pipelines.operations.builders import without_openings
from tests.toy import write_tone_corpus, write_tones

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


def test_clips_of_the_only_unit_are_seen_to_be_done_before_it_ends(tmp_path, monkeypatch, ray_session, capsys):
    monkeypatch.setattr("cluster.unit_queue.TICK_SECONDS", 0.02)
    monkeypatch.setattr("pipelines.interface.progress.PLAIN_SECONDS", 0.0)
    manifest = prepare_tones(tmp_path, num_clips=15)
    words = [f"manifest={manifest}", f"cache={tmp_path}/c", "whisper=tiny", "beats=tiny", "workers=1"]
    assert main(["extract", *words]) == 0
    told = capsys.readouterr()
    seen = [int(clips) for clips in re.findall(r"^extract: (\d+)/15 clips", told.err, re.MULTILINE)]
    assert seen == sorted(seen) and seen[-1] == 15 and len({*seen} - {0, 15}) >= 2
    assert "1 shard written" in told.out


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
    assert FeatureCache(str(tmp_path)).rows().equals(FeatureCache(str(undisturbed)).rows())


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
    assert FeatureCache(f"{tmp_path}/c").num_clips == 8
    assert main(["extract", *words, "max_reject_fraction=0"]) == 0


def test_recording_that_the_only_node_misses_fails_by_name_and_is_no_reject(tmp_path, ray_session, capsys):
    manifest = prepare_tones(tmp_path / "tones", num_clips=6)
    audio = tmp_path / "tones" / "audio"
    for name in ("tone-2.wav", "tone-3.wav"):
        (audio / name).rename(audio / f"{name}.away")
    words = [f"manifest={manifest}", f"cache={tmp_path}/c", "whisper=tiny", "beats=tiny"]
    assert main(["extract", *words, "workers=1"]) == 1
    error = capsys.readouterr().err
    assert re.search(
        rf"node {re.escape(socket.gethostname())}/\w+: .*audio/tone-2.wav and 1 other recordings of the unit: "
        "no such file, or no permission to read it; no other node was there to try",
        error,
    ), error
    assert f"node {socket.gethostname()}/" in error and "recordings of 1 shard" in error
    assert main(["cache", "info", f"cache={tmp_path}/c"]) == 0
    assert "rejected" not in capsys.readouterr().out
    assert main(["extract", *words, "workers=1", "reject_absent=true", "max_reject_fraction=0.5"]) == 0
    assert FeatureCache(f"{tmp_path}/c").num_clips == 4


def test_recording_that_prepare_missed_already_is_a_reject(tmp_path, ray_session):
    corpus = write_tone_corpus(tmp_path, num_clips=4)
    (corpus / "audio" / "tone-2.wav").unlink()
    config = TableConfig(table=str(corpus / "table.jsonl"), audio_root=str(corpus / "audio"), out=f"{tmp_path}/m")
    prepare_table(replace(config, missing="keep"))
    report = extract(config_of(f"{tmp_path}/m", tmp_path / "c", workers=1, max_reject_fraction=0.5))
    assert (report.clips, report.rejects) == (3, 1) and report.refusals == {}


def worker_on(node, tmp_path, manifest) -> tuple[ExtractWorker, ExtractUnit]:
    worker = make_worker(tmp_path / node)
    extend_plan(f"{tmp_path}/{node}", read_clips(manifest), recipe=worker.config.recipe, shard_nbytes=10**9)
    (unit,) = read_units(f"{tmp_path}/{node}")
    worker.node = node
    return worker, unit


def test_a_clip_is_rejected_where_two_nodes_miss_the_same_recording(tmp_path):
    manifest = prepare_tones(tmp_path / "tones", num_clips=5)
    audio = tmp_path / "tones" / "audio"
    for name in ("tone-1.wav", "tone-3.wav"):
        (audio / name).rename(audio / f"{name}.away")
    (first, unit), (second, _) = (worker_on(node, tmp_path, manifest) for node in ("a", "b"))
    with pytest.raises(NotHereError, match=r"node a: .*tone-1.wav and 1 other") as refused:
        first.run(unit, Attempt())
    lacking = refused.value.lacking
    assert [Path(recording).name for recording in lacking] == ["tone-1.wav", "tone-3.wav"]
    with pytest.raises(NotHereError):
        first.run(unit, Attempt(2, {"a": lacking}))  # one node alone, even twice, is one node
    with pytest.raises(NotHereError, match=r"node b: .*tone-3.wav: no such") as again:
        second.run(unit, Attempt(2, {"a": lacking[:1]}))
    assert again.value.lacking == lacking
    (audio / "tone-3.wav.away").rename(audio / "tone-3.wav")  # which b sees
    stats = second.run(unit, Attempt(2, {"a": lacking}))
    assert (stats.shard.clips, stats.shard.rejects, stats.node) == (4, 1, "b")
    (row,) = read_rejects(f"{tmp_path}/b", {0}).to_pylist()
    assert row["stage"] == "open" and row["error"].endswith("tone-1.wav: open: no such file on node b, nor on node a")


def test_what_is_heard_with_a_doubt_is_counted_or_rejected(tmp_path, ray_session, capsys):
    corpus = write_tone_corpus(tmp_path, num_clips=4)
    wave, rate = soundfile.read(corpus / "audio" / "tone-1.wav")
    soundfile.write(corpus / "audio" / "tone-1.wav", np.stack([0 * wave, wave], axis=1), rate)
    words = [f"table={corpus}/table.jsonl", f"audio_root={corpus}/audio", f"out={tmp_path}/m"]
    assert main(["prepare", "table", *words]) == 0
    words = [f"manifest={tmp_path}/m", "whisper=tiny", "beats=tiny", "workers=1"]
    assert main(["extract", *words, f"cache={tmp_path}/c"]) == 0
    assert main(["cache", "info", f"cache={tmp_path}/c"]) == 0
    assert re.search(
        r"doubts     1\n +1 × the heard channel is silent, channel 1 is not; the first clip: \w{32}",
        capsys.readouterr().out,
    )
    assert main(["cache", "verify", f"cache={tmp_path}/c"]) == 0
    assert main(["extract", *words, f"cache={tmp_path}/d", "reject_doubtful=true", "max_reject_fraction=0.3"]) == 0
    (row,) = read_rejects(f"{tmp_path}/d", {0}).to_pylist()
    assert "tone-1.wav: samples: the heard channel is silent" in row["error"]
    capsys.readouterr()
    assert main(["extract", *words, f"cache={tmp_path}/c", "channel=1"]) == 2
    assert "channel is 'first' there and '1' here" in capsys.readouterr().err
    assert main(["extract", *words, f"cache={tmp_path}/e", "channel=left"]) == 2
    assert "channel=left: must be first, mean, or a number" in capsys.readouterr().err
    assert main(["extract", *words, f"cache={tmp_path}/e", "channel=mean"]) == 0


def test_storage_that_fails_on_a_node_is_no_reject(tmp_path, monkeypatch):
    worker, unit = worker_on("a", tmp_path, prepare_tones(tmp_path / "tones", num_clips=2))

    def stale(uri):
        raise OSError(errno.ESTALE, "Stale file handle", uri)

    monkeypatch.setattr(storage, "open_file", stale)
    with pytest.raises(NotHereError, match=r"node a: .*Stale file handle") as refused:
        worker.run(unit, Attempt())
    assert refused.value.lacking == ()


def prepare_folder(folder, out, seconds, *words) -> int:
    write_tones(folder, seconds)
    rows = [f"tone-{number}.wav,{folder.name} {number}" for number in range(len(seconds))]
    (folder / "t.csv").write_text("\n".join(["path,text", *rows]))
    return main(["prepare", "table", f"table={folder}/t.csv", f"out={out}", *words])


def test_two_folders_with_one_name_are_two_clips_or_refused(tmp_path, capsys):
    assert prepare_folder(tmp_path / "cats", tmp_path / "m", [1.0, 1.5]) == 0
    assert prepare_folder(tmp_path / "dogs", tmp_path / "m", [1.0, 1.25], "append=true") == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/dogs/tone-1.wav: is not the sound that" in error and "a name of its own (corpus=…)" in error
    assert len(list(read_clips(str(tmp_path / "m")))) == 2
    assert prepare_folder(tmp_path / "dogs", tmp_path / "m", [1.0, 1.25], "append=true", "corpus=dogs") == 0
    assert len({clip.clip_id for clip in read_clips(str(tmp_path / "m"))}) == 4


def test_a_replaced_recording_is_noticed_and_encoded_again(tmp_path, ray_session, capsys):
    folder, words = tmp_path / "tones", ["whisper=tiny", "beats=tiny", "workers=1", "shard_megabytes=1"]
    assert prepare_folder(folder, tmp_path / "m", [1.0, 1.25, 1.5, 1.75]) == 0
    words += [f"manifest={tmp_path}/m", f"cache={tmp_path}/c"]
    assert main(["extract", *words]) == 0
    before = FeatureCache(f"{tmp_path}/c").rows().to_pylist()
    wave, rate = soundfile.read(folder / "tone-2.wav")
    soundfile.write(folder / "tone-2.wav", wave[::-1], rate)  # as long as before
    capsys.readouterr()
    assert main(["manifest", "check", f"manifest={tmp_path}/m"]) == 1
    assert f"recordings replaced since they were prepared: 1\n  {folder}/tone-2.wav" in capsys.readouterr().out
    assert main(["extract", *words]) == 2
    assert "1 of 4 recordings that were compared are others than when they were prepared" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "m")
    assert main(["prepare", "table", f"table={folder}/t.csv", f"out={tmp_path}/m"]) == 0
    assert main(["extract", *words]) == 2
    error = capsys.readouterr().err
    assert "1 clip of another sound" in error and "replace_changed=true encodes their shards again" in error
    assert main(["extract", *words, "replace_changed=true"]) == 0
    after = FeatureCache(f"{tmp_path}/c").rows().to_pylist()
    changed = [old["source_digest"] != new["source_digest"] for old, new in zip(before, after, strict=True)]
    assert [old["clip_id"] for old in before] == [new["clip_id"] for new in after] and sum(changed) == 1
    assert main(["extract", *words]) == 0 and main(["cache", "verify", f"cache={tmp_path}/c"]) == 0


def test_another_folders_manifest_is_not_served_from_an_old_cache(tmp_path, ray_session, capsys):
    words = ["whisper=tiny", "beats=tiny", "workers=1", f"cache={tmp_path}/c"]
    assert prepare_folder(tmp_path / "cats", tmp_path / "m1", [1.0, 1.5]) == 0
    assert main(["extract", *words, f"manifest={tmp_path}/m1"]) == 0
    assert prepare_folder(tmp_path / "dogs", tmp_path / "m2", [1.0, 1.25]) == 0
    assert main(["extract", *words, f"manifest={tmp_path}/m2"]) == 2
    assert f"1 clip of another sound than the manifest's of their name, first {tmp_path}/dogs/tone-1.wav" in (
        capsys.readouterr().err
    )
    shutil.copytree(tmp_path / "cats", tmp_path / "moved")  # the same sound elsewhere is encoded once
    assert main(["prepare", "table", f"table={tmp_path}/moved/t.csv", f"out={tmp_path}/m3"]) == 0
    capsys.readouterr()
    assert main(["extract", *words, f"manifest={tmp_path}/m3"]) == 0
    assert "complete, nothing to do" in capsys.readouterr().out


def test_a_recording_replaced_between_prepare_and_extract_is_rejected_by_its_length(tmp_path):
    manifest = prepare_tones(tmp_path / "tones", num_clips=3)
    worker, unit = worker_on("a", tmp_path, manifest)
    write_tones(tmp_path / "tones" / "audio", [1.0, 2.0, 1.5])
    assert worker.run(unit, Attempt()).shard.rejects == 1
    (row,) = read_rejects(f"{tmp_path}/a", {0}).to_pylist()
    assert re.search(r"tone-1.wav: open: has \d+ bytes, and had \d+ when it was prepared", row["error"])


def test_manifests_and_plans_made_before_sources_were_known_go_on(tmp_path):
    manifest = Path(prepare_tones(tmp_path / "tones", num_clips=4))
    worker, _ = worker_on("a", tmp_path, str(manifest))
    for table in (manifest / "clips.parquet", tmp_path / "a" / "units" / "000000.parquet"):
        pq.write_table(pq.read_table(table).drop_columns("sources"), table)
    (unit,) = read_units(f"{tmp_path}/a")
    assert {clip.sources for clip in unit.clips} == {()} == {clip.sources for clip in read_clips(str(manifest))}
    assert worker.run(unit, Attempt()).shard.clips == 4
    assert main(["manifest", "check", f"manifest={manifest}"]) == 0
    keys = {"recipe": worker.config.recipe, "shard_nbytes": 10**9}
    assert extend_plan(f"{tmp_path}/a", str(manifest), **keys) == 0
    shutil.rmtree(manifest)
    assert extend_plan(f"{tmp_path}/a", prepare_tones(tmp_path / "tones", num_clips=4), **keys) == 0


def test_cache_that_another_job_writes_to_is_refused(manifest, tmp_path, capsys):
    with storage.held(str(tmp_path / "c")):
        assert main(["extract", f"manifest={manifest}", f"cache={tmp_path}/c", "whisper=tiny", "beats=tiny"]) == 2
    error = capsys.readouterr().err
    assert re.search(rf"another job is at work there \(process {os.getpid()} on .*, since 20", error)
    assert error.count("\n") == 1 and not (tmp_path / "c").exists()


def test_unit_that_cannot_be_written_is_reported_and_the_rest_is_done(manifest, tmp_path, ray_session):
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "000001.parquet").mkdir()
    with pytest.raises(JobIncompleteError, match=r"1 shard failed.*\n.*000001"):
        extract_in_small_shards(manifest, tmp_path, workers=1)
    done = committed_units(str(tmp_path))
    (job,) = (path for path in (tmp_path / "jobs").iterdir() if path.is_dir())
    (failed,) = (line for line in unit_lines(str(job)) if "error" in line)
    assert failed["unit"] == 1 and failed["attempt"] == 2 and failed["error"]
    (tmp_path / "index" / "000001.parquet").rmdir()
    report = extract_in_small_shards(manifest, tmp_path, workers=1)
    assert report.units == 1 and 1 not in done


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["whisper=absent", "beats=tiny"], "absent: no such folder"),
        (["whisper=tiny", "beats=absent.pt"], "absent.pt: no such file"),
        (["whisper=tiny", "beats=tiny", "manifest=absent"], "absent: no manifest there"),
        (["whisper=tiny", "beats=tiny", "codec=int4"], "codec=int4: must be one of float16, int8"),
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
    assert without_openings(wrong.stderr).count("\n") == 1


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
    lines = list(unit_lines(str(page.with_suffix(""))))
    assert [line["rejects_by_stage"] for line in lines if line["rejects"]] == [{"length": 1}]
    assert {line["job"] for line in lines} == {page.stem} and all(line["node"] and line["ended"] for line in lines)
    cost = read_encoding_cost(str(undisturbed))
    assert cost.clips == 23 and 0 < cost.encode_seconds <= cost.extract_seconds < 60
    text = page.read_text()
    assert "24" in text and "23, of which 1 rejected" not in text and "24, of which 1 rejected" in text
    assert text.count("data:image/png") == 2
    assert f"Cache {undisturbed}. Encoders: speech tiny, audio tiny, codec float16. 1 worker on" in text
    assert re.search(rf"Written 20\d\d-\d\d-\d\d \d\d:\d\d UTC by salmonn {re.escape(product_version())}\.", text)


@pytest.mark.parametrize("price", [0.0, 720.0])
def test_the_page_compares_the_job_with_encoders_in_every_step(tmp_path, price):
    stats = {"unit": 0, "ended_seconds": 40.0, "seconds": 40.0, "clips": 10, "rejects": 1, "nbytes": 1_000}
    units = pa.Table.from_pylist([{**stats, "audio_seconds": 100.0, "parts": []}], UNIT_SCHEMA)
    write_closing_report(
        str(tmp_path / "page.html"),
        units,
        forecast=Forecast(11, 0.03, 1_000, 0.0),
        workers=2,
        seconds=50.0,
        parts={"whisper": 20.0, "beats": 10.0, "wait for encode": 36.0, "write": 4.0},
        devices=["H100"],
        cache="c",
        encoders={"speech": "tiny"},
        command="salmonn extract",
        examples_per_clip=3.0,
        price_per_hour=price,
    )
    page = (tmp_path / "page.html").read_text()
    rows = dict(re.findall(r"<tr>\s*<td>(.*?)</td>\s*(.*?)\s*</tr>", page, re.DOTALL))
    cells = {name: re.findall(r"<td>(.*?)</td>", row) for name, row in rows.items()}
    assert cells["this job"] == [f"{100 / 3600:.4g}", "20.00" if price else ""]
    assert cells["the encoders in every step, an epoch"] == [f"{90 / 3600:.4g}", "18.00" if price else ""]
    assert "the 30 examples of these clips" in page and "3 s a clip as measured here (H100)" in page
    assert "paid for itself after 1.11 epochs" in page and ("money at 720 an hour" in page) == bool(price)


def test_units_are_lines_as_soon_as_they_are_done_and_a_file_holds_a_thousand(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.extraction.unit_log.UNITS_PER_FILE", 4)
    folder = tmp_path / "20261128T000000.000000Z"
    log = UnitLog(str(folder))
    assert not folder.exists()
    for unit in range(10):
        stats = UnitStats(
            ShardInfo(unit=unit, clips=2, rejects=0, seconds=20.0, nbytes=1_000), 1.5, "cpu", {"write": 0.5}
        )
        log.add(UnitResult(unit=None, value=stats, attempt=1, seconds=1.6))
        assert [line["unit"] for line in unit_lines(str(folder))] == list(range(unit + 1))
    log.add_failed(FailedUnit("000010", "no such file", 3))
    log.close()
    assert storage.list_names(str(folder)) == ["000000.jsonl", "000001.jsonl", "000002.jsonl"]
    table = read_unit_log(str(folder))
    assert table["unit"].to_pylist() == list(range(10)) and table["lowest_snr_db"].null_count == 10
    (failed,) = (line for line in unit_lines(str(folder)) if "error" in line)
    assert (failed["unit"], failed["attempt"], failed["job"]) == (10, 3, folder.name)


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
    manifest = prepare_tones(tmp_path / "tones", num_clips=80, damaged=79)
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


def test_shards_that_vanish_are_missed_at_the_end(manifest, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pipelines.extraction.extract._run", lambda *given: None)  # as if all had been written
    words = [f"manifest={manifest}", f"cache={tmp_path}/c", "whisper=tiny", "beats=tiny"]
    assert main(["extract", *words]) == 1
    assert re.search(r"c: \d+ shards missing: 000000", capsys.readouterr().err)
