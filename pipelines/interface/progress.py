"""One live line per phase of work on a terminal; without a terminal a plain line now and then and at the end."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer

from rich import progress as bars
from rich.console import Console

PLAIN_SECONDS, PLAIN_FRACTION = 10.0, 0.02
"""A plain line comes after so many seconds, later after this part of the time passed: some 300 lines in a day."""
QUIET_SECONDS = 0.7
SPEED_SECONDS = 3600.0
"""Past over which the time remaining is estimated; pieces of work may take many minutes."""


class Phase:
    """A running phase: how much is done, and a few words about how it goes."""

    def __init__(self, name: str, unit: str, total: float | None, live: bars.Progress | None) -> None:
        self.name, self.unit, self.total = name, unit, total
        self.done, self.note = 0.0, ""
        self.start = self._printed = time.monotonic()
        self._begun_at: float | None = None
        self._first: tuple[float, float] | None = None
        """When something was first seen to be done, and how much by then: what comes before is the start of workers."""
        self._told: tuple[float, float | None, str] | None = None
        self._live = live
        self._task = live.add_task(name, total=total, unit=unit, note="") if live else None

    def advance(self, amount: float = 1.0) -> None:
        self.update(self.done + amount)

    def update(self, done: float, *, note: str | None = None, total: float | None = None) -> None:
        """Say how much is done by now."""
        if self._begun_at is None:
            self._begun_at = done  # what a continued run has done before
        elif self._first is None and done > self._begun_at:
            self._first = time.monotonic(), done
        self.done, self.note, self.total = done, self.note if note is None else note, total or self.total
        if self._live and self._task is not None:
            self._live.update(self._task, completed=done, total=self.total, note=self.note)
        elif time.monotonic() - self._printed > max(PLAIN_SECONDS, PLAIN_FRACTION * (self._printed - self.start)):
            self.print_line()

    def print_line(self) -> None:
        """Print the phase as a plain line, unless that is what the last line said."""
        self._printed, told = time.monotonic(), (self.done, self.total, self.note)
        if told == self._told:
            return
        self._told = told
        total = f"/{self.total:.12g}" if self.total else ""
        seconds, left = self._printed - self.start, self._seconds_left()
        remaining = f", {left:.0f} s left" if left > 0 else ""
        print(
            f"{self.name}: {self.done:.12g}{total} {self.unit} in {seconds:.1f} s{remaining}  {self.note}".rstrip(),
            file=sys.stderr,
        )

    def _seconds_left(self) -> float:
        """Return how long the rest takes at the speed since the first piece; 0 where nobody knows."""
        began, done = self._first or (0.0, self.done)
        if not self.total or self.done <= done:
            return 0.0
        return (self.total - self.done) * (self._printed - began) / (self.done - done)


class Progress:
    """Shows the phases of a verb, one at a time."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)

    @contextmanager
    def opening(self, what: str) -> Iterator[None]:
        """Show, while the block runs, what goes on that has no parts to count: a line that is gone afterwards.

        Without a terminal the line stays, so it is only printed of what takes longer than `QUIET_SECONDS`.
        """
        if self._console.is_terminal:
            with self._console.status(what):
                yield
            return
        timer = Timer(QUIET_SECONDS, lambda: print(f"{what} …", file=sys.stderr, flush=True))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    @contextmanager
    def phase(self, name: str, *, unit: str, total: float | None = None) -> Iterator[Phase]:
        """Show a phase while the block runs."""
        if not self._console.is_terminal:
            phase = Phase(name, unit, total, None)
            yield phase
            phase.print_line()  # not after an exception, whose one line stands alone
            return
        columns = (
            bars.TextColumn("{task.description:<12}"),
            bars.BarColumn(bar_width=12),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[unit]}"),
            bars.TimeElapsedColumn(),
            bars.TimeRemainingColumn(compact=True),
            bars.TextColumn("[dim]{task.fields[note]}"),
        )
        with bars.Progress(
            *columns, console=self._console, refresh_per_second=4, speed_estimate_period=SPEED_SECONDS
        ) as live:
            yield Phase(name, unit, total, live)
