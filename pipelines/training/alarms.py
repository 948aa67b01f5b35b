"""What can be seen in the lines of metrics.jsonl that somebody should know at once.

Every alarm is a condition on the lines so far. It rings when the condition comes true, and again only after it has been
false: the past of a run that continues is gone through first, so that nothing rings twice.
"""

import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.interface.config import require_range

MAD_TO_SIGMA = 1.4826
"""A normal distribution's standard deviation over its median absolute deviation."""
MEDIAN_ERROR = 1.2533
"""√(π/2): a median's standard error over a mean's, where the noise is normal."""
MIN_LINES = 10
"""Lines that a median is taken over at least."""
RECENT_LINES = 5
"""Lines over whose median the waiting for data is judged: one slow read rings nothing."""

Line = Mapping[str, Any]


@dataclass(frozen=True)
class AlarmConfig:
    window_lines: int = 50
    """[lines] Lines of metrics that a new one is compared with; 10 at least."""
    spike_sigmas: float = 8.0
    """[standard deviations] A line's loss so far above the median of the window is a spike; 0: no alarm."""
    divergence_fraction: float = 0.25
    """[fraction] The window's median loss so far above the lowest one yet is divergence; 0: no alarm."""
    plateau_windows: int = 4
    """[windows] So many without a fall of the loss that stands out from its noise are a plateau; 0: no alarm."""
    starved_steps: int = 1_000
    """[steps] A task of the run without an example for so long is starved; 0: no alarm."""
    data_wait_fraction: float = 0.2
    """[fraction] Workers that wait for data for a larger share of the time; 0: no alarm."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require_range(self, ("window_lines",), low=MIN_LINES)
        require_range(self, ("spike_sigmas", "divergence_fraction", "plateau_windows", "starved_steps"), low=0)
        require_range(self, ("data_wait_fraction",), low=0, high=1)


class Alarms:
    """The alarms of one run; `look` at its lines in order."""

    def __init__(self, config: AlarmConfig, tasks: list[str]) -> None:
        self._config = config
        self._losses: deque[float] = deque(maxlen=config.window_lines * max(config.plateau_windows, 1))
        self._waits: deque[float] = deque(maxlen=RECENT_LINES)
        self._lowest = float("inf")
        self._seen = dict.fromkeys(tasks, 0)
        self._ringing: set[str] = set()

    def look(self, line: Line) -> list[str]:
        """Return what begins with this line, `name: what was seen` each."""
        found = self._starved(line)
        tests: dict[str, Callable[[Line], str]] = {"data wait": self._data_wait}
        if line["loss"] == line["loss"]:  # not the NaN of a line all of whose steps were skipped
            tests |= {"spike": self._spike, "divergence": self._divergence, "plateau": self._plateau}
        found |= {name: test(line) for name, test in tests.items()}
        new = [f"{name}: {text}" for name, text in found.items() if text and name not in self._ringing]
        self._ringing = {name for name in self._ringing if name not in found} | {n for n, text in found.items() if text}
        return new

    def _starved(self, line: Line) -> dict[str, str]:
        limit, step = self._config.starved_steps, line["step"]
        self._seen |= dict.fromkeys(line.get("examples_by_task", {}), step)
        return {
            f"starvation of {task}": f"no example since step {last}" if limit and step - last >= limit else ""
            for task, last in self._seen.items()
        }

    def _data_wait(self, line: Line) -> str:
        self._waits.append(line["data_wait_fraction"])
        share, limit = statistics.median(self._waits), self._config.data_wait_fraction
        if not limit or len(self._waits) < RECENT_LINES or share <= limit:
            return ""
        return f"{share:.0%} of the time goes into waiting for data, more than {limit:.0%}"

    def _spike(self, line: Line) -> str:
        """Compare with the median of the window before; a deviation counts as at least 1 % of it."""
        window, limit = list(self._losses)[-self._config.window_lines :], self._config.spike_sigmas
        self._losses.append(line["loss"])
        if not limit or len(window) < MIN_LINES:
            return ""
        middle, sigma = _median_and_sigma(window)
        if line["loss"] <= middle + limit * max(sigma, 0.01 * middle):
            return ""
        return f"loss {line['loss']:.3f} against {middle:.3f} before"

    def _divergence(self, line: Line) -> str:
        """Compare medians of windows, so that it takes more than a spike; 0.05 nats are always allowed."""
        window, limit = list(self._losses)[-self._config.window_lines :], self._config.divergence_fraction
        if not limit or len(window) < MIN_LINES:
            return ""
        middle = statistics.median(window)
        self._lowest = min(self._lowest, middle)
        if middle <= max((1 + limit) * self._lowest, self._lowest + 0.05):
            return ""
        return f"median loss {middle:.3f}, once {self._lowest:.3f}"

    def _plateau(self, line: Line) -> str:
        """Compare the medians of the older and the newer half: a fall of less than two standard errors is none."""
        losses = list(self._losses)
        if not self._config.plateau_windows or len(losses) < (self._losses.maxlen or 0):
            return ""
        half = len(losses) // 2
        (older, older_sigma), (newer, newer_sigma) = map(_median_and_sigma, (losses[:half], losses[half:]))
        error = MEDIAN_ERROR * ((older_sigma**2 + newer_sigma**2) / half) ** 0.5
        if older - newer >= 2 * error and older > newer:
            return ""
        return f"no fall of the loss in {len(losses)} lines, {newer:.3f} in the newer half"


def _median_and_sigma(losses: list[float]) -> tuple[float, float]:
    """Return the median and a standard deviation that outliers do not widen."""
    middle = statistics.median(losses)
    return middle, MAD_TO_SIGMA * statistics.median(abs(loss - middle) for loss in losses)
