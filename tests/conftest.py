"""One thread of torch and one Ray for the whole test run."""

from collections.abc import Iterator

import pytest
import ray
import torch

from cluster.connection import RayConfig, connect


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Networks this small gain nothing from more threads, and lose much on a machine that is busy."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Start a local cluster of four logical CPUs; its tests carry `pytest.mark.ray`."""
    connect(RayConfig(address="local", num_cpus=4, object_store_mib=128))
    yield
    ray.shutdown()
