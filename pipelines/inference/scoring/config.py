"""Config of the verb that lists tasks."""

from dataclasses import dataclass

from pipelines.interface.config import require_range


@dataclass(frozen=True)
class TasksConfig:
    level: int = 0
    """[number] Level to list: 1 trained, 2 speech tasks that emerge, 3 tasks of speech and other sounds; 0: all."""

    def __post_init__(self) -> None:
        """Refuse levels that there are not."""
        require_range(self, ["level"], low=0, high=3)
