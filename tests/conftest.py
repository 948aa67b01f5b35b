"""One thread of torch and one Ray for the whole test run, and one head node for the tests of submitted jobs."""

from collections.abc import Iterator

import pytest
import ray
import torch

from cluster.config import RayConfig
from cluster.connection import connect
from tests import SHARED
from tests.ray_head import RayHead, ray_head
from tests.s3_server import CREDENTIALS


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in a hook of the same name, and would read them before
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests that share a cluster in one process, and skip those whose reference numbers are not here."""
    absent = pytest.mark.skip(reason=f"needs reference numbers or real recordings in {SHARED}, which is not there")
    for item in items:
        if item.get_closest_marker("weights") and not SHARED.is_dir():
            item.add_marker(absent)
        if group := _cluster_of(item):
            item.add_marker(pytest.mark.xdist_group(group))


def _cluster_of(item: pytest.Item) -> str | None:
    """Return the name of the cluster that a test shares with others: as many as keep two processes equally busy."""
    fixtures = getattr(item, "fixturenames", ())
    if "job_head" in fixtures:
        return "jobs"
    if "ray_session" in fixtures:
        return "training" if "training" in item.path.parts else "ray"
    return None


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Networks this small gain nothing from more threads, and lose much on a machine that is busy."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def quiet_openings() -> Iterator[None]:
    """Keep verbs that a busy machine runs slowly from saying so: tests compare what is said."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.interface.progress.QUIET_SECONDS", 60.0)
        yield


@pytest.fixture(autouse=True, scope="session")
def own_snapshots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep snapshots, those of other processes too, out of the home of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SALMONN_SNAPSHOTS", str(tmp_path_factory.mktemp("snapshots")))
        yield


@pytest.fixture(autouse=True, scope="session")
def object_store_keys() -> Iterator[None]:
    """Put the keys of the local S3 server where workers find them: they have the environment of Ray's start."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Start a local cluster of four logical CPUs; its tests carry `pytest.mark.ray`."""
    connect(RayConfig(address="local", num_cpus=4, object_store_mib=128))
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def job_head() -> Iterator[RayHead]:
    """Start a head node with a job server and a token of its own; its tests carry `pytest.mark.ray`."""
    with ray_head(num_cpus=4) as head:
        yield head
