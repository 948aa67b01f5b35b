"""The file that `salmonn report-bug` writes: what a maintainer needs, and nothing that opens a door."""

import json
import shutil
from pathlib import Path

import pytest

from cluster.unit_queue import FailedUnit
from pipelines import storage
from pipelines.cli import main
from pipelines.extraction.unit_log import UnitLog
from pipelines.operations.bug_report import LAST_FAILURES, MOST_BYTES
from tests.s3_server import s3_server

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "HF_TOKEN": "hf_abcdefghijklmnop",
    "SOMETHING": "purple-elephant-7",
    "RAY_AUTH_TOKEN": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "HTTPS_PROXY": "http://proxy-user:proxy-pass@proxy:3128",
}
PLANTED = (*SECRETS.values(), "proxy-user", "proxy-pass", "hunter2")


@pytest.fixture
def surroundings(monkeypatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")


def report(tmp_path: Path, *words: str) -> str:
    out = tmp_path / "report.txt"
    assert main(["report-bug", *words, f"out={out}"]) == 0
    return out.read_text()


def test_without_run_and_cache_it_tells_versions_machine_and_names_of_variables(
    surroundings, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["report-bug"]) == 0
    (file,) = tmp_path.glob("salmonn-report-*.txt")
    assert capsys.readouterr().out == f"{file}: read it before you send it; nothing has been sent\n"
    told = file.read_text()
    for part in ("\nsalmonn-pipeline 0.1.0\n", "\nray 2.", "\ntorch 2.", "\npyarrow ", "platform: Linux", "cores: "):
        assert part in told
    assert "\nHF_TOKEN\n" in told and "\nOMP_NUM_THREADS=3\n" in told and "SOMETHING" not in told
    assert not [secret for secret in PLANTED if secret in told]


def with_secrets(corpus, unbroken, tmp_path) -> tuple[Path, Path]:
    """Return copies of a run and a cache that hold secrets wherever somebody may have left one."""
    run, cache = shutil.copytree(unbroken, tmp_path / "run"), shutil.copytree(corpus[1], tmp_path / "cache")
    config = run / "config.yaml"
    config.write_text(f"{config.read_text()}note: {SECRETS['SOMETHING']}\nstore: s3://hunter2:x@b/c?k=hunter2\n")
    job = UnitLog(str(cache / "jobs" / "20261128T120000.000000Z"))
    for unit, secret in enumerate((*SECRETS.values(), "https://me:hunter2@host/x?y=hunter2", "password: my hunter2")):
        job.add_failed(FailedUnit(str(unit), attempts=3, error=f"GET failed ({secret}) with {json.dumps(secret)}"))
    job.close()
    record = {"command": f"salmonn extract api_key=hunter2 cache=s3://b/c?secret_key=hunter2 x={SECRETS['HF_TOKEN']}"}
    (cache / "jobs" / "20261128T120000.000000Z.json").write_text(json.dumps(record))
    return run, cache


def test_secrets_in_environment_config_uris_and_logs_are_not_in_it_and_the_rest_is(
    surroundings, corpus, unbroken, tmp_path
):
    run, cache = with_secrets(corpus, unbroken, tmp_path)
    told = report(tmp_path, f"run={run}", f"cache={cache}")
    assert not [secret for secret in PLANTED if secret in told], told
    for part in (
        "step: 6 of 6",
        "complete [2, 4, 6], unfinished []",
        "\nsteps: 6\n",
        '"examples_sha256"',
        "valid_loss",
    ):
        assert part in told
    for part in ("clips: 12 of 12", '"preprocessing_version"', "given up by the last job", "salmonn extract api_key="):
        assert part in told
    assert told.count("GET failed") == 2 * (len(SECRETS) + 2)  # among the last units, and among those given up


def test_of_many_failures_the_last_are_told_and_no_line_is_cut(corpus, tmp_path):
    cache = shutil.copytree(corpus[1], tmp_path / "cache")
    job = UnitLog(str(cache / "jobs" / "20261128T120000.000000Z"))
    for unit in range(900):
        job.add_failed(FailedUnit(str(unit), attempts=3, error=f"begin {unit} {'long ' * 40} password=hunter2 end"))
    job.close()
    told = report(tmp_path, f"cache={cache}")
    assert len(told) < MOST_BYTES and "hunter2" not in told and "begin 899 " in told
    assert told.rpartition("given up")[2].count("begin ") == LAST_FAILURES


@pytest.mark.parametrize("broken", ["config.yaml", "run.json", "metrics.jsonl", "checkpoints"])
@pytest.mark.parametrize("how", ["gone", "bytes"])
def test_a_broken_run_is_told_as_far_as_it_can_be_read(unbroken, tmp_path, broken, how):
    run = shutil.copytree(unbroken, tmp_path / "run")
    place = run / broken
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    if how == "bytes":
        place.write_bytes(b"\xff\x00{[password=hunter2\n" * 3)
    told = report(tmp_path, f"run={run}")
    assert "hunter2" not in told
    shown_as_it_is_or_not_there_yet = [("run.json", "bytes"), ("metrics.jsonl", "gone"), ("checkpoints", "gone")]
    assert ("not read: " in told) == ((broken, how) not in shown_as_it_is_or_not_there_yet)
    for name, part in {"config.yaml": "\nsteps: 6\n", "run.json": '"recipe"', "metrics.jsonl": '"step": 6'}.items():
        assert (part in told) == (name != broken), name


def test_a_run_in_an_object_store_is_told_without_the_stores_keys(surroundings, unbroken, tmp_path, monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "test" if name.startswith("AWS") else "")
    with s3_server("bucket") as server:
        uri = server.upload(unbroken, "bucket/run")
        told = report(tmp_path, f"run={uri}")
        assert "## run s3://bucket/run?<hidden>\n" in told and "endpoint_override" not in told
        assert "step: 6 of 6" in told and "\nsteps: 6\n" in told
        assert main(["report-bug", f"out={storage.join(uri, 'report.txt')}"]) == 0
        assert b"salmonn-pipeline" in storage.read_bytes(storage.join(uri, "report.txt"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run=/nowhere"], "run=/nowhere: no such folder"),
        (["cache=/nowhere"], "cache=/nowhere: no such folder"),
        (["out=README.md"], "out=README.md: is there already"),
        (["runs=x"], "runs"),
    ],
)
def test_what_is_wrong_with_its_keys_is_one_line(words, said, capsys):
    assert main(["report-bug", *words]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1
