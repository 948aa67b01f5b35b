"""What a user of `ray job submit` sees, on a real head node with token authentication."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests import ROOT
from tests.ray_head import RayHead, ray_environment

pytestmark = pytest.mark.ray

WHERE = """
import sys
from pathlib import Path

import ray

import cluster
import llm
from cluster.connection import connect

connect()
shipped = Path(cluster.__file__).parents[1]
there = ray.get(ray.remote(lambda: __import__("llm").__file__).remote())
assert Path(there).parents[1] == shipped == Path.cwd(), (there, shipped, Path.cwd())
assert not (shipped / ".venv").exists() and not (shipped / ".git").exists()
print("shipped", sum(path.stat().st_size for path in shipped.rglob("*") if path.is_file()), "bytes")
sys.exit(3)
"""
CONNECT = "from cluster.connection import *; connect(RayConfig(address={address!r})); print(ray.cluster_resources())"


def connect_to(address: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CONNECT.format(address=address)]
    return subprocess.run(command, env=dict(environment), cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_exit_code_of_a_good_job_is_0(job_head: RayHead, tmp_path: Path) -> None:
    outcome = job_head.submit(["python", "-c", "print('all', 'well')"], tmp_path)
    assert (outcome.exit_code, outcome.job_exit_code) == (0, 0)
    assert "all well" in outcome.logs


def test_a_job_runs_the_shipped_packages_and_its_exit_code_arrives(job_head: RayHead) -> None:
    outcome = job_head.submit(["python", "-c", WHERE], ROOT)
    assert (outcome.exit_code, outcome.job_exit_code) == (1, 3), outcome.logs  # Ray's command makes every failure a 1
    shipped = int(outcome.logs.split("shipped ")[-1].split()[0])
    assert shipped < 20_000_000


@pytest.mark.parametrize("settings", [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong"}], ids=["none", "wrong"])
class TestWithoutTheToken:
    def test_nothing_can_be_submitted(self, job_head: RayHead, tmp_path: Path, settings: dict[str, str]) -> None:
        nobody = ray_environment({**settings, "HOME": str(tmp_path)})
        outcome = job_head.submit(["python", "-c", "print('all', 'well')"], tmp_path, environment=nobody)
        assert outcome.exit_code != 0
        assert outcome.job_exit_code is None
        assert "all well" not in outcome.logs

    def test_connecting_says_what_to_set(self, job_head: RayHead, tmp_path: Path, settings: dict[str, str]) -> None:
        done = connect_to(job_head.address, ray_environment({**settings, "HOME": str(tmp_path)}))
        last = done.stderr.splitlines()[-1]
        assert last.startswith(f"cluster.errors.ClusterError: Ray cluster {job_head.address}: ")
        assert last.endswith("set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to a file that holds the cluster's token")


def test_connecting_with_the_token(job_head: RayHead) -> None:
    done = connect_to(job_head.address, job_head.environment)
    assert done.returncode == 0, done.stderr
    assert "'CPU': 4.0" in done.stdout


def test_the_head_keeps_to_its_own_folder(job_head: RayHead) -> None:
    assert job_head.token_path.stat().st_mode & 0o077 == 0
    assert any((job_head.token_path.parent / "tmp").glob("session_*"))
    assert "RAY_ADDRESS" not in job_head.environment
    assert os.environ.get("RAY_AUTH_TOKEN_PATH") != str(job_head.token_path)
