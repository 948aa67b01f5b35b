"""Trials on Ray actors: processes side by side, and in each several trials by turns."""

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.failures import describe_error
from pipelines.interface.progress import Phase
from pipelines.training.sweep.config import StopEarlyConfig
from pipelines.training.sweep.early import Asha
from pipelines.training.sweep.process import TrialProcess
from pipelines.training.sweep.results import TrialResult
from pipelines.training.sweep.trial import Goal, Trial
from pipelines.training.sweep.watch import Watch

MOST_PROCESSES = 200
"""Asked for at a time, of which those that find no room wait for it; a cluster that grows sees that it should."""
Start = Callable[[], Any]


@dataclass(eq=False)
class Process:
    """A process, or one that waits for room, and the trials that it trains."""

    actor: Any
    trials: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Call:
    """What a process was asked for: to be there, to train one trial on, or to end it after a last line."""

    process: Process
    number: int = -1
    last_line: dict[str, Any] | None = None


class Pool:
    """The processes, and which trial is next."""

    def __init__(
        self, todo: Sequence[int], watch: Watch, asha: Asha | None, *, num_trials: int, max_failures: int, start: Start
    ) -> None:
        """Ask for as many processes as `num_trials` in each need; `start` returns an actor, there or not."""
        self._queue, self._losses = deque(todo), Counter[int]()
        self._watch, self._asha, self._max_failures, self._start = watch, asha, max_failures, start
        num_processes = max(1, math.ceil(len(todo) / num_trials))
        self._num_trials = max(1, math.ceil(len(todo) / num_processes))  # evenly
        self._calls: dict[Any, Call] = {}
        self._processes: list[Process] = []
        self._open_or_close()

    def run(self) -> None:
        """Train to the last trial's end."""
        while self._calls:
            (ref,), _ = ray.wait([*self._calls])
            call = self._calls.pop(ref)
            try:
                answer = ray.get(ref)
            except RayTaskError as error:
                self._break(call, describe_error(error))
            except RayError as error:  # an actor that died, was killed for memory, or could not be started
                self._lose(call.process, describe_error(error))
            else:
                self._go_on(call, answer)

    def _go_on(self, call: Call, line: Any) -> None:
        if call.number < 0:
            self._fill(call.process)
        elif call.last_line:
            self._watch.stop(call.number, call.last_line)
            self._free(call)
        elif "failed" in line:
            self._watch.fail(call.number, line["failed"])
            self._free(call)
        else:
            self._watch.follow(call.number, line)
            stops = False
            if self._asha and "score" in line:  # what others are compared with, also where it is the last line
                stops = self._asha.stops(call.number, step=line["step"], score=line["score"])
            if line["is_last"]:
                self._watch.complete(call.number)
                self._free(call)
            elif stops:
                self._calls[call.process.actor.end.remote(call.number)] = Call(call.process, call.number, line)
            else:
                self._train_on(call.process, call.number)

    def _train_on(self, process: Process, number: int) -> None:
        self._calls[process.actor.train_on.remote(number)] = Call(process, number)

    def _free(self, call: Call) -> None:
        call.process.trials.discard(call.number)
        self._fill(call.process)

    def _fill(self, process: Process) -> None:
        """Give the process trials, and let those go that nothing is left for."""
        while self._queue and self._has_room(process, self._queue[0]):
            number = self._queue.popleft()
            process.trials.add(number)
            self._watch.begin(number)
            self._train_on(process, number)
        if not self._queue:
            self._open_or_close()

    def _has_room(self, process: Process, number: int) -> bool:
        """Return whether a process takes another trial; of those that were lost together one may be to blame."""
        if any(self._losses[one] for one in (number, *process.trials)):
            return not process.trials
        return len(process.trials) < self._num_trials

    def _open_or_close(self) -> None:
        """Ask for as many processes as the trials that wait need beside those without any; let them go if none wait."""
        waiting = [one for one in self._processes if not one.trials]
        if not self._queue:
            for process in waiting:
                self._close(process)
        alone = sum(self._losses[number] > 0 for number in self._queue)
        wanted = alone + math.ceil((len(self._queue) - alone) / self._num_trials)
        for _ in range(min(wanted - len(waiting), MOST_PROCESSES - len(self._processes))):
            process = Process(self._start())
            self._processes.append(process)
            self._calls[process.actor.pid.remote()] = Call(process)

    def _close(self, process: Process) -> None:
        self._processes.remove(process)
        self._calls = {ref: call for ref, call in self._calls.items() if call.process is not process}
        ray.kill(process.actor)

    def _lose(self, process: Process, reason: str) -> None:
        """Let the trials of a process that is gone wait behind all others; one that never came costs the next one."""
        self._close(process)
        next_one = [self._queue.popleft()] if self._queue and not process.trials else []
        for number in [*sorted(process.trials), *next_one]:
            self._losses[number] += 1
            if self._losses[number] > self._max_failures:
                self._watch.fail(number, reason)
            else:
                self._watch.lose(number)
                self._queue.append(number)
        self._open_or_close()

    def _break(self, call: Call, reason: str) -> None:
        """Fail a trial that raised, and end its process, whose GPU may be of no use now; the others go on elsewhere."""
        self._close(call.process)
        self._watch.fail(call.number, reason)
        for number in sorted(call.process.trials - {call.number}):
            self._watch.lose(number)
            self._queue.append(number)
        self._open_or_close()


def run_trials(
    trials: Sequence[Trial],
    results: Sequence[TrialResult],
    *,
    goal: Goal,
    stop_early: StopEarlyConfig,
    resources: dict[str, float],
    num_trials: int,
    max_failures: int,
    phase: Phase,
) -> dict[int, str]:
    """Train the trials that have not ended, as many side by side as there is room for; return why some failed.

    Args:
        trials: All of the sweep.
        results: What they came to so far.
        goal: What they are ranked by.
        stop_early: When to stop which.
        resources: CPU and GPU of a process.
        num_trials: Trials of a process at a time.
        max_failures: Times that a trial whose process or machine was lost is taken up again, after all others.
        phase: Counts steps; steps that a trial is spared count as done.
    """
    watch = Watch(trials, results, goal, phase)
    asha = Asha(stop_early, goal, results) if stop_early.grace_steps else None
    everything = ray.put(list(trials))
    actor = ray.remote(TrialProcess).options(num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0))
    todo = [result.number for result in results if result.ending == "unfinished"]
    pool = Pool(
        todo,
        watch,
        asha,
        num_trials=num_trials,
        max_failures=max_failures,
        start=lambda: actor.remote(everything, goal),
    )
    try:
        pool.run()
    except BaseException:
        ray.shutdown()  # the trials end before the sweep's folder is let go
        raise
    return watch.failures
