"""The keys of `salmonn plan train`."""

from dataclasses import dataclass

from pipelines.errors import UserError
from pipelines.interface.config import require_range
from pipelines.training.config import TrainConfig

WITHOUT_CALIBRATION = "device_teraflops=… or forecast_step_seconds=… gives the times without it"


@dataclass(frozen=True)
class PlanTrainConfig(TrainConfig):
    forecast_step_seconds: float = 0.0
    """[seconds] A step's time where it is known; 0: measured here, or from device_teraflops."""
    device_teraflops: float = 0.0
    """[TFLOP/s] What a worker's device attains, where there is none here; weights are then not loaded. 0: unknown."""
    calibration_seconds: float = 10.0
    """[seconds] Time spent on measuring steps, once the first is done."""
    clips_per_second: float = 0.0
    """[clips/s] A device's speed of encoding, against which the cache is held; 0: as the cache's jobs/ record it."""
    trials_per_process: int = 1
    """[count] The key of `sweep`: for the memory of so many trials of this run over one frozen LLM."""
    json: bool = False
    """[true/false] Print JSON instead of a table."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        require_range(self, ("device_teraflops", "calibration_seconds", "clips_per_second"), low=0)
        require_range(self, ("trials_per_process",), low=1)
        if self.forecast_step_seconds and self.device_teraflops:
            raise UserError(f"device_teraflops={self.device_teraflops}: means nothing with forecast_step_seconds")
        if self.shard_llm and self.workers > 1 and not (self.forecast_step_seconds or self.device_teraflops):
            raise UserError(f"shard_llm=true: the whole LLM would be calibrated on one device; {WITHOUT_CALIBRATION}")

    def next_step(self) -> str:
        """Return what goes on from here."""
        return "the same words with train instead of plan train"
