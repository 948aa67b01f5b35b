"""One Ray for the whole test run."""

from collections.abc import Iterator

import pytest
import ray

from cluster.connection import RayConfig, connect


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Start a local cluster of four logical CPUs; its tests carry `pytest.mark.ray`."""
    connect(RayConfig(address="local", num_cpus=4, object_store_mib=128))
    yield
    ray.shutdown()
