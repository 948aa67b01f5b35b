"""The cluster that most of these tests disturb."""

from collections.abc import Iterator

import pytest

from tests.chaos.machines import Machines


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        machines = Machines()
        yield machines
        machines.cluster.shutdown()
