"""Actors that train nothing, and end as they are told to."""

import os
import time
from pathlib import Path

import pytest
import ray

from pipelines.interface.progress import Progress
from pipelines.training.sweep.pool import Pool
from pipelines.training.sweep.results import read_result
from pipelines.training.sweep.trial import Goal, Trial
from pipelines.training.sweep.watch import Watch
from tests.pipelines.builders import config_of

pytestmark = pytest.mark.ray
STEPS = 3


def scripted() -> type:
    class Scripted:
        """Takes each trial through its steps, unless it is one that kills or breaks."""

        def __init__(self, folder: str, kills: list[int], raises: list[int], *, starts: bool) -> None:
            if not starts:
                raise RuntimeError("no such package")
            self._folder, self._kills, self._raises = Path(folder), kills, raises
            self._steps: dict[int, int] = {}

        def pid(self) -> int:
            return os.getpid()

        def train_on(self, number: int) -> dict[str, object]:
            step = self._steps[number] = self._steps.get(number, 0) + 1
            (self._folder / f"{number}-{step}-{os.getpid()}").touch()
            if step == 2 and number in self._kills:
                os._exit(1)
            if step == 2 and number in self._raises:
                raise RuntimeError("device-side assert")
            time.sleep(0.01)
            return {"step": step, "is_last": step == STEPS}

        def end(self, number: int) -> None:
            del self._steps[number]

    return Scripted  # by value, so that its process imports nothing of ours


def failures_of(folder, ray_session, *, num_trials, kills=(), raises=(), starts=True, max_failures=1, trials=6):
    """Run a pool to its end; return why trials failed."""
    made = [Trial(number, {}, config_of(("m", "c"), folder / str(number), steps=STEPS)) for number in range(trials)]
    goal = Goal("loss", "min")
    actor = ray.remote(scripted()).options(num_cpus=1)
    with Progress().phase("sweep", unit="steps", total=trials * STEPS) as phase:
        watch = Watch(made, [read_result(trial, goal) for trial in made], goal, phase)
        start = lambda: actor.remote(str(folder), list(kills), list(raises), starts=starts)  # noqa: E731
        Pool(range(trials), watch, None, num_trials=num_trials, max_failures=max_failures, start=start).run()
        assert not watch._running and set(watch._endings) == set(range(trials))
    return watch.failures


def processes_of(folder, number) -> list[str]:
    return sorted({path.name.split("-")[2] for path in folder.glob(f"{number}-*")})


def test_a_trial_that_kills_its_process_fails_alone(tmp_path, ray_session):
    failures = failures_of(tmp_path, ray_session, num_trials=3, kills=[1])
    assert list(failures) == [1] and len(processes_of(tmp_path, 1)) == 2


def test_a_trial_that_raises_ends_its_process_and_costs_the_others_no_try(tmp_path, ray_session):
    failures = failures_of(tmp_path, ray_session, num_trials=3, raises=[1], max_failures=0)
    assert list(failures) == [1] and "device-side assert" in failures[1]
    assert len(processes_of(tmp_path, 1)) == 1


@pytest.mark.parametrize("trials", [0, 3])
def test_processes_that_never_come_end_the_sweep_with_their_reason(tmp_path, ray_session, trials):
    failures = failures_of(tmp_path, ray_session, num_trials=2, starts=False, trials=trials)
    assert sorted(failures) == list(range(trials)) and all("no such package" in why for why in failures.values())
