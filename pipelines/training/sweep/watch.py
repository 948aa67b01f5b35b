"""What the driver of a sweep knows of its trials, shown in one line."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pipelines.interface.progress import Phase
from pipelines.training.sweep.results import Ending, TrialResult, mark_stopped
from pipelines.training.sweep.trial import Goal, Trial


class Watch:
    """What the driver knows of the trials: shows it, records which were stopped early and why others failed."""

    def __init__(self, trials: Sequence[Trial], results: Sequence[TrialResult], goal: Goal, phase: Phase) -> None:
        """Begin where the results are."""
        self._trials, self._goal, self._phase = {trial.number: trial for trial in trials}, goal, phase
        self._steps = {result.number: result.step for result in results}
        self._scores = [(result.number, result.score) for result in results if result.score is not None]
        self._endings: dict[int, Ending] = {
            result.number: result.ending for result in results if result.ending != "unfinished"
        }
        self._running: set[int] = set()
        self.failures: dict[int, str] = {}
        self._show()

    def begin(self, number: int) -> None:
        self._running.add(number)
        self._show()

    def follow(self, number: int, line: dict[str, Any]) -> None:
        self._steps[number] = line["step"]
        if "score" in line:
            self._scores.append((number, line["score"]))
        self._show()

    def lose(self, number: int) -> None:
        """Take note that a trial's process is gone, and that it will be taken up again."""
        self._running.discard(number)
        self._show()

    def fail(self, number: int, reason: str) -> None:
        self.failures[number] = reason
        self._end(number, "failed")

    def complete(self, number: int) -> None:
        self._end(number, "complete")

    def stop(self, number: int, line: dict[str, Any]) -> None:
        mark_stopped(self._trials[number], self._goal, step=line["step"], score=line["score"])
        self._end(number, "stopped early")

    def _end(self, number: int, ending: Ending) -> None:
        self._running.discard(number)
        self._endings[number] = ending
        self._show()

    def _show(self) -> None:
        endings = Counter(self._endings.values())
        early = f", {endings['stopped early']} of them early" if endings["stopped early"] else ""
        done = f"{endings['complete'] + endings['stopped early']} of {len(self._trials)} trials done{early}"
        is_starting = not self._running and len(self._endings) < len(self._trials)
        words = [done, "processes start" if is_starting else f"{len(self._running)} running"]
        words += [f"{endings['failed']} failed"] if endings["failed"] else []
        if best := self._goal.best(self._scores):
            words.append(f"best {self._goal.metric} {best[1]:.4f} (trial {best[0]})")
        steps = {number: trial.config.steps for number, trial in self._trials.items() if number in self._endings}
        self._phase.update(sum((self._steps | steps).values()), note=", ".join(words))
