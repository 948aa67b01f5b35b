"""When a queue of units gives up an attempt, a unit, or an actor."""

from dataclasses import dataclass
from typing import Literal

from cluster.errors import ClusterError

Fault = Literal["failure", "death", "loss"]
"""failure: the unit raised or took too long; death: the actor's process ended on its own; loss: its machine went."""


@dataclass(frozen=True)
class QueueLimits:
    max_tries: int = 3
    """[count] Failures (error or timeout) after which a unit is given up; the same number of deaths of its process."""
    max_losses: int = 10
    """[count] Losses of the machine under a unit (node gone, preempted, unreachable) after which it is given up."""
    unit_seconds: float = 3600.0
    """[seconds] Longest run of one unit; then its actor is killed and the unit counts as failed."""
    start_seconds: float = 900.0
    """[seconds] Longest start of an actor, from the beginning of its `__init__`."""
    no_actor_seconds: float = 900.0
    """[seconds] Longest time without any actor ready or starting, as while a cluster grows."""
    max_failed_starts: int = 3
    """[count] Failed starts in a row after which no more actors are started; without any other the job stops."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for key in ("max_tries", "max_losses", "max_failed_starts"):
            if getattr(self, key) < 1:
                raise ClusterError(f"{key}={getattr(self, key)}: must be 1 or more")
        for key in ("unit_seconds", "start_seconds", "no_actor_seconds"):
            if not getattr(self, key) > 0:
                raise ClusterError(f"{key}={getattr(self, key)}: must be positive")

    def allowed(self, fault: Fault) -> int:
        """Return how many faults of this kind end a unit."""
        return self.max_losses if fault == "loss" else self.max_tries
