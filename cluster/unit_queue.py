"""Runs many units of work on a pool of Ray actors, through failures of both, with a truthful end.

The driver keeps one unit in flight per actor and replaces dead actors itself. Actors wait in the same `ray.wait` set
as units: an actor's first reference is its `ready()`. A unit that a node cannot do, and another perhaps can, is refused
by it and goes to another node next. Memory does not grow with the number of units.
"""

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray.exceptions import ActorUnavailableError, ObjectLostError, RayActorError, RayError, RayTaskError

from cluster.actor_state import has_begun, lost_its_node
from cluster.errors import ClusterError
from cluster.failures import describe_error
from cluster.limits import Fault, QueueLimits

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.5
MOST_REFUSED = 3
"""Units refused by a node that wait for another: so long it gets no fresh ones, or a blind node would refuse all."""
PENDING_SECONDS = 60.0
"""Time that a unit which all nodes have refused waits for actors that are still starting, perhaps on other nodes."""
MOST_ASKED = 16
"""Actors that are asked in one tick how far they are: of a thousand each is asked every half minute."""
MOST_REFUSED_AT_START = 12
"""Refusals by all nodes before the first unit is done after which the job stops: nothing speaks for the others."""


class Unit(Protocol):
    """A piece of work; it is pickled to the actor as it is."""

    @property
    def unit_id(self) -> str: ...


class UnitActor(Protocol):
    """What a class must have to be wrapped as an actor of the queue.

    Its options are max_restarts=0, max_task_retries=0, max_concurrency=2.
    """

    def ready(self) -> str:
        """Return the name of the actor's node once `__init__` is through."""

    def run(self, unit: Any, attempt: "Attempt") -> Any:
        """Do the unit and return something small.

        An attempt given up by the driver may still be running on a machine out of reach: what it writes under a
        temporary name should hold more than the unit's id.

        Raises:
            NotHereError: If what the unit lacks may be there on another node.
        """

    def progress(self) -> float:
        """Return how much of the running unit is done, in parts that the caller knows.

        The actor needs a thread for it (max_concurrency=2); one without answers between units, which is harmless.
        """


@dataclass(frozen=True)
class Attempt:
    """Which try of a unit it is, and what nodes that refused it said."""

    number: int = 1
    refusals: Mapping[str, Any] = field(default_factory=dict)


class NotHereError(Exception):
    """Raised by a unit that its node cannot do: `lacking` is what the next attempt is told of this node."""

    def __init__(self, node: str, lacking: Any, message: str) -> None:
        super().__init__(node, lacking, message)  # the arguments themselves, so that a pickled copy is equal
        self.node, self.lacking, self.message = node, lacking, message

    def __str__(self) -> str:
        return f"node {self.node}: {self.message}"


class FatalUnitError(Exception):
    """Raised by a unit to stop the whole job at once, where trying again or going on makes no sense."""


class ActorStartError(ClusterError):
    """No actor could be had: its own error, or the cluster has no room for one."""


@dataclass(frozen=True)
class UnitResult:
    """A unit that is done: what `run` returned, at which attempt, and the seconds the driver waited for it."""

    unit: Unit
    value: Any
    attempt: int
    seconds: float


@dataclass(frozen=True)
class FailedUnit:
    """A unit that was given up, with the error of its last attempt."""

    unit_id: str
    error: str
    attempts: int


@dataclass(frozen=True)
class QueueProgress:
    """Where the queue stands, in counts; `begun` adds up what actors said of the units that they are at."""

    done: int
    begun: float
    failed: int
    running: int
    idle_actors: int
    starting_actors: int
    retries: int
    actor_deaths: int


@dataclass(frozen=True)
class QueueReport:
    """How it ended; done + failed are all the units there were."""

    done: int
    failed: list[FailedUnit]
    retries: int
    actor_deaths: int
    seconds: float
    refusals: Mapping[str, int] = field(default_factory=dict)
    """Units that a node refused, by its name."""


def run_units(
    units: Iterable[Unit],
    *,
    start_actor: Callable[[], Any],
    num_actors: int,
    limits: QueueLimits,
    on_result: Callable[[UnitResult], None],
    on_progress: Callable[[QueueProgress], None] | None = None,
) -> QueueReport:
    """Run every unit to its end, done or given up, and say how each ended.

    Args:
        units: Read one ahead of what runs.
        start_actor: Makes the handle of a new `UnitActor` with its options; must not block.
        num_actors: Actors asked for; those the cluster has no room for yet are used when they come.
        limits: When to give up what.
        on_result: Called in the driver once per unit done; what it raises stops the job.
        on_progress: Called in the driver after each event and at least every half second.

    Raises:
        FatalUnitError: If a unit raised it.
        ActorStartError: If there is no actor and none can be started.
        ClusterError: If num_actors is less than 1.
    """
    if num_actors < 1:
        raise ValueError(f"num_actors={num_actors}: must be 1 or more")
    queue = _Queue(units, start_actor, num_actors, limits, on_result)
    try:
        return queue.run(on_progress)
    finally:
        queue.kill_all()


@dataclass(eq=False)
class _Task:
    """A unit and what has befallen it."""

    unit: Unit
    faults: Counter[Fault] = field(default_factory=Counter)
    refusals: dict[str, Any] = field(default_factory=dict)
    """By node, what its last refusal said."""
    refused: str = ""
    refused_at: float = 0.0
    attempts: int = 0


class _Backlog:
    """Units still to run: those that wait for another node, then all fresh ones, one read ahead, then second tries."""

    def __init__(self, units: Iterable[Unit]) -> None:
        self._units = iter(units)
        self._ahead = next(self._units, None)
        self._again: deque[_Task] = deque()
        self._elsewhere: list[_Task] = []
        self.taken = 0

    def __bool__(self) -> bool:
        return self._ahead is not None or bool(self._again or self._elsewhere)

    def at_most(self) -> float:
        """Return how many there may be; unknown, so infinite, until the iterator has ended."""
        return len(self._again) + len(self._elsewhere) if self._ahead is None else math.inf

    def pop(self, node: str) -> _Task | None:
        """Return the next unit for a node; None if there is none for it now."""
        for place, task in enumerate(self._elsewhere):
            if node not in task.refusals:
                return self._elsewhere.pop(place)
        if self._ahead is None:
            return self._again.popleft() if self._again else None
        if len(self._elsewhere) >= MOST_REFUSED:
            return None
        task, self._ahead = _Task(self._ahead), next(self._units, None)
        self.taken += 1
        return task

    def put_back(self, task: _Task) -> None:
        self._again.append(task)

    def put_elsewhere(self, task: _Task) -> None:
        self._elsewhere.append(task)

    def take_refused_by_all(self, nodes: Set[str], *, until: float) -> list[_Task]:
        """Take out the units that each of the nodes has refused, the last one before some time."""
        refused = [task for task in self._elsewhere if task.refusals.keys() >= nodes and task.refused_at <= until]
        self._elsewhere = [task for task in self._elsewhere if task not in refused]
        return refused


@dataclass
class _Flight:
    """An actor's reference that the driver waits for: of its unit, or of `ready()` where it has none yet."""

    actor: Any
    task: _Task | None
    since: float | None
    """When the unit was handed out or `__init__` began; None while the actor waits for room in the cluster."""
    asked: Any = None
    """Reference of the actor's answer to how far it is."""
    asked_at: float = 0.0
    progress: float = 0.0


class _Queue:
    def __init__(
        self,
        units: Iterable[Unit],
        start_actor: Callable[[], Any],
        num_actors: int,
        limits: QueueLimits,
        on_result: Callable[[UnitResult], None],
    ) -> None:
        self.backlog = _Backlog(units)
        self.start_actor, self.num_actors, self.limits, self.on_result = start_actor, num_actors, limits, on_result
        self.flights: dict[Any, _Flight] = {}  # by ObjectRef, the longest in flight first
        self.idle: list[Any] = []
        self.nodes: dict[Any, str] = {}  # of the actors that are ready
        self.refusals: Counter[str] = Counter()
        self.refused_by_all = 0
        self.running = self.done = self.retries = self.actor_deaths = 0
        self.failed: list[FailedUnit] = []
        self.failed_starts, self.start_error = 0, ""
        self.checked = self.had_actor = time.monotonic()

    def run(self, on_progress: Callable[[QueueProgress], None] | None) -> QueueReport:
        start = time.monotonic()
        while self.backlog or self.running:
            self._start_actors()
            self._hand_out()
            if on_progress:
                on_progress(self.progress())
            if self.flights:
                arrived, _ = ray.wait(list(self.flights), timeout=TICK_SECONDS)
                for reference in arrived:
                    self._receive(reference)
            else:  # all wait for another node
                time.sleep(TICK_SECONDS)
            if time.monotonic() - self.checked >= TICK_SECONDS:
                self._check_clocks()
        if on_progress:
            on_progress(self.progress())
        assert self.done + len(self.failed) == self.backlog.taken, "a unit was lost or counted twice"
        seconds = time.monotonic() - start
        return QueueReport(self.done, self.failed, self.retries, self.actor_deaths, seconds, self.refusals)

    def progress(self) -> QueueProgress:
        return QueueProgress(
            done=self.done,
            begun=sum(flight.progress for flight in self.flights.values()),
            failed=len(self.failed),
            running=self.running,
            idle_actors=len(self.idle),
            starting_actors=len(self.flights) - self.running,
            retries=self.retries,
            actor_deaths=self.actor_deaths,
        )

    def kill_all(self) -> None:
        for actor in [*self.idle, *(flight.actor for flight in self.flights.values())]:
            ray.kill(actor)

    def _start_actors(self) -> None:
        if self.failed_starts >= self.limits.max_failed_starts:
            if not self.running and not self.idle:
                raise ActorStartError(
                    f"{self.failed_starts} actors in a row did not start; the last: {self.start_error}"
                )
            return
        wanted = min(self.num_actors, self.running + self.backlog.at_most())
        while len(self.flights) + len(self.idle) < wanted:
            actor = self.start_actor()
            self.flights[actor.ready.remote()] = _Flight(actor, None, None)

    def _hand_out(self) -> None:
        for actor in reversed(self.idle[:]):
            task = self.backlog.pop(self.nodes[actor])
            if task is None:
                continue
            self.idle.remove(actor)
            task.attempts += 1
            attempt = Attempt(task.attempts, task.refusals)
            self.flights[actor.run.remote(task.unit, attempt)] = _Flight(actor, task, time.monotonic())
            self.running += 1

    def _receive(self, reference: Any) -> None:
        flight = self.flights[reference]
        try:
            value = ray.get(reference)
        except RayTaskError as error:
            if isinstance(error, FatalUnitError):
                raise error.cause from None
            if isinstance(error.cause, NotHereError) and flight.task:
                self._refuse(reference, error.cause)
                return
            self._end(reference, "failure", describe_error(error), keep_actor=flight.task is not None)
        except RayError as error:
            self.actor_deaths += 1
            self._end(reference, _kind_of(error, flight.actor), describe_error(error))
        else:
            del self.flights[reference]
            self.idle.append(flight.actor)
            self.failed_starts = 0
            if flight.task:
                self._finish(flight, value)
            else:
                self.nodes[flight.actor] = value

    def _finish(self, flight: _Flight, value: Any) -> None:
        assert flight.task is not None and flight.since is not None
        self.running -= 1
        self.done += 1
        task = flight.task
        self.on_result(UnitResult(task.unit, value, task.attempts, time.monotonic() - flight.since))

    def _refuse(self, reference: Any, error: NotHereError) -> None:
        """Keep a unit that a node cannot do for another node."""
        flight = self.flights.pop(reference)
        assert flight.task is not None
        self.running -= 1
        self.idle.append(flight.actor)
        task, node = flight.task, self.nodes[flight.actor]
        level = logging.INFO if self.refusals[node] else logging.WARNING  # the driver says in the end how many
        logger.log(level, "unit %s, attempt %d: refused by %s", task.unit.unit_id, task.attempts, error)
        self.refusals[node] += node not in task.refusals
        task.refusals[node], task.refused, task.refused_at = error.lacking, str(error), time.monotonic()
        self.backlog.put_elsewhere(task)
        self._settle_refused()

    def _settle_refused(self) -> None:
        """Count a refusal as a failure where no other node has an actor: it may be over when the unit's turn comes."""
        is_growing = len(self.flights) > self.running
        until = time.monotonic() - (PENDING_SECONDS if is_growing else 0.0)
        for task in self.backlog.take_refused_by_all(set(self.nodes.values()), until=until):
            self.refused_by_all += 1
            if not self.done and self.refused_by_all >= MOST_REFUSED_AT_START:
                raise FatalUnitError(f"no unit can be done on any node so far; {task.refused}")
            self._charge(task, "failure", f"{task.refused}; no other node was there to try")

    def _end(self, reference: Any, fault: Fault, error: str, *, keep_actor: bool = False) -> None:
        """Take a flight that came to nothing out of the air; its actor is killed unless it is known to be well."""
        flight = self.flights.pop(reference)
        node = self.nodes.get(flight.actor)
        if keep_actor:
            self.idle.append(flight.actor)
        else:
            ray.kill(flight.actor)  # one that is unavailable may still be running
            self.nodes.pop(flight.actor, None)
        if flight.task:
            self.running -= 1
            self._charge(flight.task, fault, f"node {node}: {error}")
            return
        logger.warning("an actor did not start: %s: %s", fault, error)
        if fault != "loss":  # a machine that goes away says nothing about the actors
            self.failed_starts, self.start_error = self.failed_starts + 1, error

    def _charge(self, task: _Task, fault: Fault, error: str) -> None:
        unit_id, attempt = task.unit.unit_id, task.attempts
        logger.warning("unit %s, attempt %d: %s: %s", unit_id, attempt, fault, error)
        task.faults[fault] += 1
        if task.faults[fault] >= self.limits.allowed(fault):
            self.failed.append(FailedUnit(unit_id, error, attempt))
        else:
            self.retries += 1
            self.backlog.put_back(task)

    def _check_clocks(self) -> None:
        """Kill what takes too long; stop where there has been no actor for too long; ask how far units are."""
        now = self.checked = time.monotonic()
        self._ask_progress()
        self._settle_refused()
        for reference, flight in list(self.flights.items()):
            if flight.since is None and has_begun(flight.actor):
                flight.since = now
            limit = self.limits.unit_seconds if flight.task else self.limits.start_seconds
            if flight.since is not None and now - flight.since > limit:
                what = "no result" if flight.task else "not ready"
                self._end(reference, "failure", f"{what} after {limit:g} s")
        if self.idle or any(flight.since is not None for flight in self.flights.values()):
            self.had_actor = now
        elif now - self.had_actor > self.limits.no_actor_seconds:
            raise ActorStartError(f"no actor for {self.limits.no_actor_seconds:g} s: the cluster has no room for one")

    def _ask_progress(self) -> None:
        """Take the answers that have come, and ask the actors whose last answer is oldest."""
        asked = {flight.asked: flight for flight in self.flights.values() if flight.asked}
        if asked:
            arrived, _ = ray.wait(list(asked), num_returns=len(asked), timeout=0)
            for reference in arrived:
                flight = asked[reference]
                flight.asked = None
                with suppress(RayError):  # of an actor that is gone its unit's reference tells
                    flight.progress = ray.get(reference)
        free = [flight for flight in self.flights.values() if flight.task and not flight.asked]
        for flight in sorted(free, key=lambda flight: flight.asked_at)[:MOST_ASKED]:
            flight.asked, flight.asked_at = flight.actor.progress.remote(), self.checked


def _kind_of(error: RayError, actor: Any) -> Fault:
    lost = isinstance(error, ActorUnavailableError | ObjectLostError)
    lost = lost or (isinstance(error, RayActorError) and error.preempted) or lost_its_node(actor)
    return "loss" if lost else "death"
