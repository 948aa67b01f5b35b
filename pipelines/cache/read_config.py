"""The keys that say how a cache is read."""

from dataclasses import dataclass

from pipelines.interface.config import require_range


@dataclass(frozen=True)
class ReadConfig:
    threads: int = 4
    """[count] Clips read at a time; an object store far away wants more, a local disk no more than its cores."""
    ahead_steps: int = 2
    """[steps] Steps read before they are needed; their features are held in memory as they are stored."""
    timeout_seconds: float = 300.0
    """[seconds] Longest that a batch's clips may take before an error names the one that storage does not give; a whole
    step's may take twice as long."""
    verify_fraction: float = 0.05
    """[fraction] Share of the clips whose checksums are compared, the same ones at every reading; the others are read
    only as far as they are heard. `salmonn cache verify` compares all."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require_range(self, ("threads", "ahead_steps"), low=1)
        require_range(self, ("timeout_seconds",), low=0.001)
        require_range(self, ("verify_fraction",), low=0, high=1)
