"""Numbers of a running job for Prometheus, by way of the page of metrics that Ray has on every node.

A process that has joined no cluster publishes nothing, and Ray is not imported for it.
"""

import math
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

Kind = Literal["Counter", "Gauge"]


@dataclass(frozen=True)
class _Metric:
    name: str
    """Without what Ray adds: `ray_` before it, and `_total` behind a counter's."""
    meaning: str
    labels: tuple[str, ...]

    def _in_ray(self, kind: Kind) -> Any:
        ray = sys.modules.get("ray")
        return _made(kind, self) if ray and ray.is_initialized() else None


@dataclass(frozen=True)
class Counter(_Metric):
    """What adds up. It stays on the node's page when its process has ended."""

    exported = property(lambda self: f"ray_{self.name}_total")

    def add(self, amount: float, **labels: str) -> None:
        """Add to it; its series begins with the first amount above 0."""
        if amount > 0 and (counter := self._in_ray("Counter")):
            counter.inc(amount, tags=labels)


@dataclass(frozen=True)
class Gauge(_Metric):
    """What stands somewhere now. Ray forgets it some 20 s after it was last set, so whoever lives sets it again."""

    exported = property(lambda self: f"ray_{self.name}")

    def set(self, value: float, **labels: str) -> None:
        """Say where it stands; what is no finite number is not said."""
        if math.isfinite(value) and (gauge := self._in_ray("Gauge")):
            gauge.set(value, tags=labels)


@cache
def _made(kind: Kind, metric: _Metric) -> Any:
    from ray.util import metrics

    return getattr(metrics, kind)(metric.name, metric.meaning, metric.labels)
