"""Joining a Ray cluster, or starting a small one of this process's own."""

import logging
import os
import secrets
import signal
import socket
import threading
from typing import Any

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
from ray.exceptions import AuthenticationError

from cluster.config import RayConfig
from cluster.errors import ClusterError, UnreachableError

logger = logging.getLogger(__name__)

MIB = 1024 * 1024
PROBE_SECONDS = 5.0


def connect(config: RayConfig | None = None) -> bool:
    """Make Ray usable in this process; a process that is connected already keeps its cluster.

    Returns whether the cluster was started here, so that it has this machine's room and no more.

    A local cluster is never shared: it is always started afresh, ends with this process, and only holders of a token
    made for it can talk to it (Ray's servers listen on every interface), unless RAY_AUTH_MODE says `disabled`.

    Raises:
        ClusterError: If the address is malformed, or the cluster's token is missing or wrong.
        UnreachableError: If nothing answers at the address, or a local cluster does not start.
    """
    config = config or RayConfig()
    if ray.is_initialized():
        return False
    address = config.address or os.environ.get("RAY_ADDRESS", "")
    if address in ("", "local"):
        _start_local(config)
        return True
    _join(address, config)
    return False


def cluster_device(device: str) -> str:
    """Return cuda or cpu for `auto`, by whether the connected cluster has GPUs now; others as they are."""
    if device != "auto":
        return device
    return "cuda" if ray.cluster_resources().get("GPU") else "cpu"


def _start_local(config: RayConfig) -> None:
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray writes one into the home folder
    settings = {
        "address": "local",
        "num_cpus": config.num_cpus or None,
        "object_store_memory": config.object_store_mib * MIB,
        "include_dashboard": False,
    }
    try:
        _init(config, settings)
    except Exception as error:  # Ray raises bare Exception where a start takes longer than its 30 s
        logger.warning("Ray did not start (%s); trying once more", " ".join(str(error).split())[:300])
        ray.shutdown()
        try:
            _init(config, settings)
        except Exception as again:
            raise UnreachableError(f"a local Ray cluster did not start, twice: {again}") from again


def _join(address: str, config: RayConfig) -> None:
    if address != "auto":
        _probe(address)
    try:
        _init(config, {"address": address})
    except AuthenticationError as error:
        raise token_error(address, error) from error
    except ConnectionError as error:
        raise UnreachableError(f"Ray cluster {address}: {error}") from error


def _init(config: RayConfig, settings: dict[str, Any]) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    ray.init(**settings, log_to_driver=config.log_to_driver, logging_level=logging.ERROR)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own prints C++ frames and aborts where Python would end


def _probe(address: str) -> None:
    """Ask the cluster for its id: `ray.init` alone tries for minutes, and its error does not tell a wrong token."""
    host, _, port = address.rpartition(":")
    if "/" in host or not host or not port.isdecimal():
        raise ClusterError(f"Ray address {address!r}: must be host:port, as `ray start --head` prints it")
    try:
        socket.create_connection((host, int(port)), timeout=PROBE_SECONDS).close()
    except OSError as error:
        raise UnreachableError(f"Ray cluster {address} cannot be reached: {error.strerror or error}") from error
    try:
        GcsClient(address=address)
    except AuthenticationError as error:
        raise token_error(address, error) from error
    except ray.exceptions.RpcError as error:
        raise UnreachableError(f"{address} does not answer as a Ray cluster: {error}") from error


def token_error(address: str, error: AuthenticationError) -> ClusterError:
    """Return the error that says what to set where a cluster refuses a token, or gets none."""
    return ClusterError(
        f"Ray cluster {address}: {error.message.splitlines()[0].rstrip('.')}; set RAY_AUTH_MODE=token and "
        "RAY_AUTH_TOKEN_PATH to a file that holds the cluster's token"
    )
