"""Covers cluster.limits, cluster.node, cluster.room."""

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import ActorUnavailableError, ObjectLostError, RayActorError, RayError

from cluster.limits import QueueLimits
from cluster.room import actors_that_fit, pool_size
from cluster.unit_queue import (
    ActorStartError,
    FatalUnitError,
    QueueProgress,
    QueueReport,
    UnitResult,
    _kind_of,
    run_units,
)
from tests.cluster.fakes import DiesAtStart, FakeActor, FakeUnit, RaisesAtStart


def make_actor(actor: type = FakeActor, *arguments: Any, num_cpus: float = 1) -> Any:
    options = {"num_cpus": num_cpus, "max_restarts": 0, "max_task_retries": 0, "max_concurrency": 2}
    return ray.remote(actor).options(**options).remote(*arguments)


def good_units(count: int) -> list[FakeUnit]:
    return [FakeUnit(f"{number:05d}") for number in range(count)]


@dataclass
class Run:
    """Runs units and keeps what came of them."""

    results: list[UnitResult] = field(default_factory=list)
    progress: list[QueueProgress] = field(default_factory=list)
    actors: list[Any] = field(default_factory=list)

    def __call__(
        self,
        units: Any,
        *,
        num_actors: int = 1,
        limits: QueueLimits | None = None,
        start: Callable[[], Any] = make_actor,
        on_result: Callable[[UnitResult], None] | None = None,
    ) -> QueueReport:
        def start_actor() -> Any:
            self.actors.append(start())
            return self.actors[-1]

        return run_units(
            units,
            start_actor=start_actor,
            num_actors=num_actors,
            limits=limits or QueueLimits(),
            on_result=on_result or self.results.append,
            on_progress=self.progress.append,
        )

    @property
    def done_ids(self) -> list[str]:
        return sorted(result.value[0] for result in self.results)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
class TestUnits:
    def test_what_is_done_of_running_units_is_told_while_they_run(self) -> None:
        run = Run()
        run([FakeUnit(str(number), seconds=3.0) for number in range(2)], num_actors=2)
        told = [progress.begun for progress in run.progress]
        assert max(told) == 1.0 and told[-1] == 0.0
        assert all(progress.begun == 0.0 for progress in run.progress if progress.done == 2)

    def test_a_thousand_actors_are_asked_in_turn(self, monkeypatch) -> None:
        monkeypatch.setattr("cluster.unit_queue.MOST_ASKED", 1)
        run = Run()
        run([FakeUnit(str(number), seconds=4.0) for number in range(3)], num_actors=3)
        assert {0.5, 1.0, 1.5} <= {progress.begun for progress in run.progress}

    def test_every_unit_is_done_once(self) -> None:
        run = Run()
        report = run(good_units(500), num_actors=2)
        assert (report.done, report.failed, report.retries, report.actor_deaths) == (500, [], 0, 0)
        assert run.done_ids == [unit.unit_id for unit in good_units(500)]
        assert run.progress[-1].done == 500

    def test_no_units_need_no_actors(self) -> None:
        run = Run()
        assert run([]).done == 0
        assert run.actors == []

    def test_bad_units_are_tried_three_times_and_the_rest_is_done(self) -> None:
        bad = [FakeUnit("raises", "raise"), FakeUnit("dies", "die"), FakeUnit("mends", "raise", last_bad_attempt=2)]
        run = Run()
        report = run([*bad, *good_units(20)], num_actors=2)
        failed = {unit.unit_id: unit for unit in report.failed}
        assert sorted(failed) == ["dies", "raises"]
        assert failed["raises"].error == "node a: OSError: raises: disk on fire, attempt 3"
        assert "process has died" in failed["dies"].error
        assert "\n" not in failed["dies"].error
        assert [unit.attempts for unit in report.failed] == [3, 3]
        assert report.done == 21
        assert report.retries == 6
        assert report.actor_deaths == 3
        assert {result.unit.unit_id: result.attempt for result in run.results}["mends"] == 3

    def test_a_hanging_unit_is_killed_at_its_limit(self) -> None:
        run = Run()
        report = run([FakeUnit("hangs", "hang"), *good_units(10)], limits=QueueLimits(max_tries=2, unit_seconds=1.0))
        assert [(unit.unit_id, unit.error) for unit in report.failed] == [("hangs", "node a: no result after 1 s")]
        assert report.done == 10
        assert report.actor_deaths == 0

    def test_a_unit_that_a_node_refuses_is_done_by_another(self) -> None:
        nodes = iter(["a", "b"])
        run = Run()
        units = [FakeUnit(f"{number}", "refused", 0.01, blind=("a",)) for number in range(30)]
        report = run(units, num_actors=2, start=lambda: make_actor(FakeActor, "", 0.0, next(nodes)))
        assert (report.done, report.failed) == (30, [])
        assert 1 <= report.refusals["a"] <= 30 and set(report.refusals) == {"a"}
        assert report.retries == 0 and {result.attempt for result in run.results} <= {1, 2}

    def test_a_unit_that_every_node_refuses_fails_and_the_rest_is_done(self) -> None:
        nodes = iter(["a", "b"])
        run = Run()
        units = [FakeUnit("none", "refused", blind=("a", "b")), *[FakeUnit(f"{number}") for number in range(10)]]
        report = run(units, num_actors=2, start=lambda: make_actor(FakeActor, "", 0.0, next(nodes)))
        assert report.done == 10 and [unit.unit_id for unit in report.failed] == ["none"]
        assert re.fullmatch(r"node [ab]: none: no such file; no other node was there to try", report.failed[0].error)
        assert report.refusals == {"a": 1, "b": 1}

    def test_where_the_only_node_refuses_everything_the_job_stops_early(self) -> None:
        run = Run()
        units = (FakeUnit(f"{number}", "refused", blind=("a",)) for number in range(1_000))
        with pytest.raises(FatalUnitError, match=r"no unit can be done on any node so far; node a: \d+: no such file"):
            run(units)

    def test_units_that_the_only_node_refuses_do_not_hold_up_the_others(self) -> None:
        run = Run()
        refused = [FakeUnit(f"none-{number}", "refused", blind=("a",)) for number in range(6)]
        report = run([FakeUnit("first"), *refused, *good_units(10)])
        assert report.done == 11 and len(report.failed) == 6

    def test_a_retried_unit_goes_to_the_back(self) -> None:
        run = Run()
        run([FakeUnit("again", "raise", last_bad_attempt=1), *good_units(10)])
        assert run.results[-1].value[0] == "again"

    def test_a_killed_actor_is_replaced_and_its_unit_done_once(self, tmp_path: Path) -> None:
        run = Run()

        def kill_during_the_next(result: UnitResult) -> None:
            run.results.append(result)
            if len(run.results) == 3:
                threading.Timer(0.15, os.kill, (result.value[1], signal.SIGKILL)).start()

        units = [FakeUnit(unit.unit_id, seconds=0.3) for unit in good_units(8)]
        report = run(units, start=lambda: make_actor(FakeActor, str(tmp_path)), on_result=kill_during_the_next)
        assert (report.done, report.failed, report.retries, report.actor_deaths) == (8, [], 1, 1)
        assert run.done_ids == [unit.unit_id for unit in units]
        assert {result.attempt for result in run.results} == {1, 2}
        assert len(list(tmp_path.iterdir())) == 9
        assert len({path.read_text() for path in tmp_path.iterdir()}) == 2

    def test_a_fatal_unit_stops_the_job_and_its_actors(self) -> None:
        run = Run()
        with pytest.raises(FatalUnitError, match="00000: all is lost"):
            run([FakeUnit("00000", "fatal"), *[FakeUnit("hangs", "hang")] * 3])
        self.assert_killed(run.actors)

    def test_an_exception_in_the_driver_kills_the_actors(self) -> None:
        def interrupt(result: UnitResult) -> None:
            raise KeyboardInterrupt

        run = Run()
        with pytest.raises(KeyboardInterrupt):
            run(good_units(5), on_result=interrupt)
        self.assert_killed(run.actors)

    def test_units_are_read_as_they_are_needed(self) -> None:
        taken = 0
        most_ahead = 0

        def read() -> Iterator[FakeUnit]:
            nonlocal taken
            for unit in good_units(300):
                taken += 1
                yield unit

        def count(result: UnitResult) -> None:
            nonlocal most_ahead
            run.results.append(result)
            most_ahead = max(most_ahead, taken - len(run.results))

        run = Run()
        assert run(read(), on_result=count).done == 300
        assert most_ahead <= 2  # one with the actor and one read ahead

    def test_progress_is_told_while_nothing_happens(self) -> None:
        run = Run()
        run([FakeUnit("slow", seconds=1.8)])
        assert sum(progress.running == 1 and progress.done == 0 for progress in run.progress) >= 3

    @staticmethod
    def assert_killed(actors: list[Any]) -> None:
        deadline = time.monotonic() + 20
        for actor in actors:
            with pytest.raises(RayActorError):
                while time.monotonic() < deadline:  # being killed takes a moment
                    ray.get(actor.ready.remote(), timeout=20)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
class TestStarts:
    def test_an_actor_that_raises_at_its_start_gives_its_own_reason(self) -> None:
        with pytest.raises(ActorStartError, match=r"3 actors .* ValueError: weights.pt"):
            Run()(good_units(5), start=lambda: make_actor(RaisesAtStart))

    def test_an_actor_that_dies_at_its_start_stops_the_job(self) -> None:
        start = time.monotonic()
        with pytest.raises(ActorStartError, match=r"2 actors .* process has died"):
            Run()(good_units(5), start=lambda: make_actor(DiesAtStart), limits=QueueLimits(max_failed_starts=2))
        assert time.monotonic() - start < 20

    def test_an_actor_may_not_start_for_ever(self) -> None:
        limits = QueueLimits(start_seconds=1.0, max_failed_starts=1)
        with pytest.raises(ActorStartError, match="not ready after 1 s"):
            Run()(good_units(5), start=lambda: make_actor(FakeActor, "", 60.0), limits=limits)

    def test_a_slow_start_is_not_a_missing_actor(self) -> None:
        limits = QueueLimits(no_actor_seconds=4.0)
        assert Run()(good_units(2), start=lambda: make_actor(FakeActor, "", 5.0), limits=limits).done == 2

    def test_a_cluster_without_room_is_said(self) -> None:
        with pytest.raises(ActorStartError, match="no room"):
            Run()(good_units(5), start=lambda: make_actor(num_cpus=100), limits=QueueLimits(no_actor_seconds=1.0))

    def test_fewer_actors_than_asked_for_do_the_work(self, caplog: pytest.LogCaptureFixture) -> None:
        run = Run()
        units = [FakeUnit(unit.unit_id, seconds=0.2) for unit in good_units(20)]
        limits = QueueLimits(start_seconds=3.0)  # shorter than the job, in which two of three actors only wait
        report = run(units, num_actors=3, start=lambda: make_actor(num_cpus=3), limits=limits)
        assert (report.done, report.actor_deaths, caplog.messages) == (20, 0, [])
        assert max(progress.running for progress in run.progress) == 1

    def test_pool_size_is_what_the_cluster_holds(self) -> None:
        assert pool_size(0, num_cpus_per_actor=1) == 4
        assert pool_size(9, num_cpus_per_actor=1) == 9  # the cluster may grow
        assert [pool_size(wanted, num_cpus_per_actor=1, own_cluster=True) for wanted in (0, 3, 9)] == [4, 3, 4]
        assert pool_size(0, num_cpus_per_actor=3) == 1
        assert pool_size(50, num_cpus_per_actor=1) == 50
        with pytest.raises(ValueError, match=r"needs 5 CPU and 0 GPU on one machine.* 4 CPU and 0 GPU"):
            pool_size(0, num_cpus_per_actor=5)


@pytest.mark.parametrize(
    "error", [ActorUnavailableError("no answer", None), RayActorError(preempted=True), ObjectLostError("", None, "")]
)
def test_a_machine_that_goes_away_is_not_the_units_fault(error: RayError) -> None:
    assert _kind_of(error, actor=None) == "loss"


def test_losses_have_a_bound_of_their_own() -> None:
    limits = QueueLimits(max_tries=2, max_losses=5)
    assert [limits.allowed(fault) for fault in ("failure", "death", "loss")] == [2, 2, 5]


def test_an_actor_needs_its_resources_on_one_machine() -> None:
    nodes = [{"CPU": 3.0, "GPU": 2.0}, {"CPU": 1.0, "GPU": 8.0}, {"CPU": 16.0}]
    assert actors_that_fit(nodes, {"CPU": 2, "GPU": 1}) == 1
    assert actors_that_fit(nodes, {"CPU": 2, "GPU": 0}) == 9
    assert actors_that_fit([{"CPU": 0.3}], {"CPU": 0.1}) == 3
    with pytest.raises(ValueError, match="some CPU or GPU"):
        actors_that_fit(nodes, {"CPU": 0, "GPU": 0})


@pytest.mark.parametrize("key", ["max_tries", "max_losses", "max_failed_starts", "unit_seconds", "no_actor_seconds"])
def test_limits_are_positive(key: str) -> None:
    with pytest.raises(ValueError, match=f"{key}=0"):
        QueueLimits(**{key: 0})


def test_a_pool_needs_an_actor() -> None:
    with pytest.raises(ValueError, match="num_actors=0"):
        Run()([], num_actors=0)
