"""`salmonn submit` and `salmonn jobs` on a real head with a token and two more nodes, and what they say when it fails.

Covers cluster.jobs.node_report, cluster.jobs.preflight.
"""

import signal
import subprocess
from collections.abc import Iterator

import pytest

from pipelines.cache.reader import FeatureCache
from tests.pipelines.operations.builders import Salmonn, ended, extraction, name_in
from tests.ray_head import RayHead, free_ports, ray_environment, ray_head, ray_worker

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def salmonn(job_head: RayHead) -> Iterator[Salmonn]:
    with ray_worker(job_head), ray_worker(job_head):
        yield Salmonn(job_head)


def test_a_job_is_checked_started_once_and_followed_by_all_who_submit_it(salmonn, tmp_path):
    words = ["submit", "extract", salmonn.address, *extraction(tmp_path)]
    first = salmonn.begin(*words)
    job = name_in(first)
    second = salmonn.begin(*words, "retries=1")
    third = salmonn.begin(*words)
    assert name_in(second) == name_in(third) == job
    third.send_signal(signal.SIGINT)
    code, said = ended(third)
    assert code == 130 and f"jobs logs {salmonn.address} job={job} follow=true" in said, said
    for process in (first, second):
        code, said = ended(process)
        assert code == 0 and f"{job}: all done" in said, said
    assert FeatureCache(str(tmp_path / "c")).num_clips == 6
    code, said = salmonn.call(*words)
    assert (code, f"{job} has done this already" in said) == (0, True), said
    code, said = salmonn.call("jobs", "status", salmonn.address, f"job={job}")
    assert code == 0 and said.startswith(f"{job}: done, started 2"), said
    code, said = salmonn.call("jobs", "logs", salmonn.address, f"job={job}", "follow=true")
    assert code == 0 and "6/6 clips" in said, said


def test_what_the_nodes_answer_is_a_line_each_and_a_fault_of_the_verb_comes_through(salmonn, tmp_path):
    words = ["submit", "extract", salmonn.address, *extraction(tmp_path), f"manifest={tmp_path}/none", "retries=2"]
    code, said = salmonn.call(*words)
    assert code == 2 and "started: " not in said, said
    assert f"paths: NOT READY: no node sees {tmp_path}/none" in said
    assert said.splitlines()[-1].endswith("is not ready for this job: see paths above; skip=[paths] leaves that out")
    code, said = salmonn.call(*words, "skip=[paths]")
    assert code == 2, said
    for line in ("job agent: takes jobs", "packages: Python ", "room: 6 workers"):
        assert f"submit: {line}" in said
    assert f"salmonn: {tmp_path}/none: " in said  # the job's own line; two more tries would not mend it
    assert said.splitlines()[-1].endswith("ended with exit code 2")


def test_a_job_that_is_stopped_ends_its_followers_with_143(salmonn, tmp_path):
    words = ["submit", "extract", salmonn.address, *extraction(tmp_path), "skip=[paths,packages,room]"]
    follower = salmonn.begin(*words, "retries=3")
    job = name_in(follower)
    salmonn.wait_until(job, "Running entrypoint")
    code, said = salmonn.call("jobs", "stop", salmonn.address, f"job={job}")
    assert code == 0 and said == f"{job} is over: stopped\n"
    code, said = ended(follower)
    assert code == 143 and said.splitlines()[-1].endswith(f"{job} stopped"), said
    code, said = salmonn.call("jobs", "stop", salmonn.address, f"job={job}")
    assert code == 0 and said == f"{job} is over: stopped\n"
    interrupted = salmonn.begin(*words, "stop_on_interrupt=true")
    again = name_in(interrupted)
    assert again == f"{job}-2"
    interrupted.send_signal(signal.SIGINT)
    code, said = ended(interrupted)
    assert code == 130 and f"{again} is being stopped" in said, said
    code, said = salmonn.call("jobs", "list", salmonn.address)
    assert code == 0 and job in said and again in said


HIDING_SOME = """
import importlib.metadata as metadata
found = metadata.version
def version(name):
    if name == "webdataset":
        raise metadata.PackageNotFoundError(name)
    return "0.0.1" if name == "safetensors" else found(name)
metadata.version = version
"""


def test_nodes_that_see_other_paths_or_have_other_packages_keep_a_job_from_starting(salmonn, tmp_path):
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine gives no mount namespaces, which hide a folder from a node")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HIDING_SOME)
    (tmp_path / "data").mkdir()
    hide = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(tmp_path / "data")]
    words = ["submit", "extract", salmonn.address, *extraction(tmp_path / "data"), "workers=1000"]
    other = {"PYTHONPATH": str(tmp_path / "site")}
    with ray_worker(salmonn.head, num_cpus=0, below=hide), ray_worker(salmonn.head, num_cpus=0, settings=other):
        code, said = salmonn.call(*words)
    assert code == 2, said
    assert "started: " not in said
    paths, packages, room, last = said.splitlines()[-4:]
    assert f" does not see {tmp_path}/data/m as others do" in paths
    assert f" does not see {tmp_path}/data/c as others do" in paths
    assert "safetensors 0.0.1 (head: " in packages and "webdataset missing (head: " in packages
    assert "room: NOT READY: 6 workers of 1 CPU and 0 GPU fit, 1000 are asked for" in room
    assert last.endswith(
        "not ready for this job: see paths, packages, room above; skip=[paths,packages,room] leaves that out"
    )
    assert not list((tmp_path / "data").glob(".seen-by-all-*"))


def test_a_wrong_token_an_unknown_job_and_a_head_that_is_not_there_are_one_line(salmonn, tmp_path):
    keys = ["manifest=/m", "cache=/c", "whisper=tiny", "beats=tiny"]
    wrong = ray_environment({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong", "HOME": str(tmp_path)})
    code, said = salmonn.call("submit", "extract", salmonn.address, *keys, environment=wrong)
    assert code == 2 and said.count("\n") == 1 and "RAY_AUTH_TOKEN_PATH" in said, said
    none = ray_environment({"RAY_AUTH_MODE": "token", "HOME": str(tmp_path)})
    code, said = salmonn.call("jobs", "list", salmonn.address, environment=none)
    assert code == 2 and said.count("\n") == 1 and "RAY_AUTH_TOKEN_PATH" in said, said
    code, said = salmonn.call("submit", "extract", "address=http://127.0.0.1:1", *keys)
    assert (code, said) == (2, "salmonn: Ray job server http://127.0.0.1:1 cannot be reached: Connection refused\n")
    code, said = salmonn.call("jobs", "logs", salmonn.address, "job=nobody")
    assert code == 2 and said.startswith("salmonn: ") and "knows no job nobody" in said, said


def test_a_job_that_dies_with_its_head_goes_on_with_the_next_one(tmp_path):
    ports = free_ports(4)
    with ray_head(ports=ports, token="a" * 64) as head:
        salmonn = Salmonn(head)
        words = ["submit", "extract", *extraction(tmp_path), salmonn.address, "retries=1", "skip=[paths,packages,room]"]
        patient = salmonn.begin(*words, "silence_seconds=100")
        job = name_in(patient)
        hasty = salmonn.begin(*words, "silence_seconds=0.5")
        assert name_in(hasty) == job
        salmonn.wait_until(job, "Running entrypoint")
    code, said = ended(hasty)
    assert code == 1 and f"{job} may have ended with its head" in said and "cannot be reached" in said, said
    with ray_head(ports=ports, token="a" * 64):
        code, said = ended(patient)
    assert code == 0, said
    assert "is not known any more: the head was started anew; trying again" in said
    assert FeatureCache(str(tmp_path / "c")).num_clips == 6
