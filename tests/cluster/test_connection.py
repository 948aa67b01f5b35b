"""Covers cluster.config, cluster.logs."""

import io
import logging
import os
import socket
import subprocess
import sys

import pytest
import ray

from cluster.config import RayConfig
from cluster.connection import connect
from cluster.logs import LOG_HANDLER, set_up_logging


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
class TestLocal:
    def test_a_connected_process_keeps_its_cluster(self) -> None:
        before = ray.get_runtime_context().gcs_address
        connect(RayConfig(address="127.0.0.1:1"))
        assert ray.get_runtime_context().gcs_address == before

    def test_a_local_cluster_wants_a_token(self) -> None:
        assert os.environ["RAY_AUTH_MODE"] == "token"
        assert ray.get(ray.remote(num_cpus=0)(lambda: os.environ["RAY_AUTH_TOKEN"]).remote())  # workers get it too


def test_a_call_without_a_cluster_starts_none() -> None:
    code = "import cluster, ray; ray.put(1)"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", code], check=False, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Ray has not been started yet" in done.stderr.splitlines()[-1]


@pytest.fixture
def disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.usefixtures("disconnected")
class TestAddress:
    @pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265", "head", "head:port", ":6379"])
    def test_it_must_be_host_and_port(self, address: str) -> None:
        with pytest.raises(ValueError, match="must be host:port"):
            connect(RayConfig(address=address))

    def test_it_is_taken_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
        with pytest.raises(ValueError, match="http://head:8265"):
            connect()

    def test_nothing_there_is_said_at_once(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        with pytest.raises(ConnectionError, match=f"127.0.0.1:{port} cannot be reached: Connection refused"):
            connect(RayConfig(address=f"127.0.0.1:{port}"))


@pytest.mark.parametrize("settings", [{"num_cpus": -1}, {"object_store_mib": 10}])
def test_the_config_is_checked(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        RayConfig(**settings)  # type: ignore[arg-type]


def test_log_lines_name_the_speaker_once(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    monkeypatch.setattr(sys, "stderr", written := io.StringIO())
    try:
        set_up_logging("rank 0")
        set_up_logging("rank 1 100%")
        logging.getLogger("here").info("a line")
        assert sum(handler.get_name() == LOG_HANDLER for handler in root.handlers) == 1
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    assert written.getvalue().endswith("[rank 1 100%] INFO here: a line\n")
    assert written.getvalue().count("\n") == 1
