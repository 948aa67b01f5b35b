"""The keys of `salmonn submit`, `salmonn jobs`, `salmonn top`, `salmonn report-bug` and `salmonn deploy`."""

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from cluster.deploy.monitoring import MonitoringSettings
from pipelines import storage
from pipelines.errors import ExistsError, MissingError, UserError
from pipelines.extraction.config import ExtractConfig
from pipelines.inference.config import EvaluateConfig
from pipelines.interface.config import require_range
from pipelines.training.config import TrainConfig
from pipelines.training.sweep.config import SweepConfig

ADDRESS = "http://127.0.0.1:8265"
CHECKS = ("paths", "packages", "room")


@dataclass(frozen=True)
class SubmitConfig:
    """The keys that a submitted verb has beside its own."""

    address: str = ADDRESS
    """[URL] Job server of the cluster, http://HOST:PORT."""
    folder: str = "."
    """[path] Checkout that is shipped with the job, less what .gitignore and .rayignore name; 100 MiB at most."""
    skip: list[str] = field(default_factory=list)
    """[names] Checks that are not made before the job starts: paths, packages, room."""
    retries: int = 0
    """[count] New tries after an end that a retry can mend: exit code 1, killed, or lost with its head."""
    again: bool = False
    """[true/false] Start the job though the same one has ended well on this cluster."""
    stop_on_interrupt: bool = False
    """[true/false] Ctrl-C stops the job; otherwise the job goes on, and nobody follows it."""
    silence_seconds: float = 60.0
    """[seconds] Longest silence of the head after which the job counts as lost with it."""

    def __post_init__(self) -> None:
        """Check what concerns the submission; each verb checks its own keys."""
        require_range(self, ("retries", "silence_seconds"), low=0)
        if unknown := [name for name in self.skip if name not in CHECKS]:
            raise UserError(f"skip={unknown[0]}: must be some of {', '.join(CHECKS)}")

    def require_paths(self) -> None:
        """Check that the folder holds this project; the verb's paths are the cluster's, and looked for there."""
        if not (Path(self.folder) / "pipelines" / "__main__.py").is_file():
            raise MissingError(f"folder={self.folder}: no checkout of this project, pipelines/__main__.py is not there")


@dataclass(frozen=True)
class SubmitExtractConfig(SubmitConfig, ExtractConfig):
    def __post_init__(self) -> None:
        """Check both parts."""
        SubmitConfig.__post_init__(self)
        ExtractConfig.__post_init__(self)


@dataclass(frozen=True)
class SubmitTrainConfig(SubmitConfig, TrainConfig):
    def __post_init__(self) -> None:
        """Check both parts."""
        SubmitConfig.__post_init__(self)
        TrainConfig.__post_init__(self)


@dataclass(frozen=True)
class SubmitSweepConfig(SubmitConfig, SweepConfig):
    def __post_init__(self) -> None:
        """Check both parts."""
        SubmitConfig.__post_init__(self)
        SweepConfig.__post_init__(self)


@dataclass(frozen=True)
class SubmitEvaluateConfig(SubmitConfig, EvaluateConfig):
    def __post_init__(self) -> None:
        """Check both parts."""
        SubmitConfig.__post_init__(self)
        EvaluateConfig.__post_init__(self)


@dataclass(frozen=True)
class JobsConfig:
    address: str = ADDRESS
    """[URL] Job server of the cluster, http://HOST:PORT."""


@dataclass(frozen=True)
class JobConfig(JobsConfig):
    job: str = MISSING
    """[id] Of the job, as `salmonn submit` and `salmonn jobs list` show it."""


@dataclass(frozen=True)
class JobLogsConfig(JobConfig):
    follow: bool = False
    """[true/false] Stay until the job's end, and end with its exit code."""
    silence_seconds: float = 60.0
    """[seconds] Longest silence of the head after which the job counts as lost with it."""


@dataclass(frozen=True)
class TopConfig:
    cache: list[str] = field(default_factory=list)
    """[URIs] Folders of feature caches."""
    run: list[str] = field(default_factory=list)
    """[URIs] Folders of runs."""
    once: bool = False
    """[true/false] Print once and end, as it does where the output is no terminal; otherwise until Ctrl-C."""
    seconds: float = 5.0
    """[seconds] Between looks; each lists the folders, which an object store counts as requests."""

    def __post_init__(self) -> None:
        """Check ranges, and that there is something to look at."""
        require_range(self, ("seconds",), low=0.1)
        if not self.cache and not self.run:
            raise UserError("cache=… or run=… is needed, or several: cache=[a,b]")


@dataclass(frozen=True)
class ReportBugConfig:
    run: str = ""
    """[URI] Folder of the run that it is about, if it is about one; a broken one will do."""
    cache: str = ""
    """[URI] Folder of the feature cache that it is about, if it is about one."""
    out: str = ""
    """[URI] Text file to write; one that is there is kept. Without it, salmonn-report-TIME.txt in this folder."""

    def require_paths(self) -> None:
        """Check that run and cache are there, where their store answers, and that no file would be lost."""
        for key in ("run", "cache"):
            uri = getattr(self, key)
            is_there = not uri
            try:
                is_there = is_there or storage.folder_exists(uri)
            except OSError:
                is_there = True  # or nobody knows; what the store says is in the report
            if not is_there:
                raise MissingError(f"{key}={uri}: no such folder")
        if self.out and storage.file_exists(self.out):
            raise ExistsError(f"out={self.out}: is there already")


@dataclass(frozen=True)
class DeployConfig:
    values: str = MISSING
    """[URI] YAML file of values; `salmonn deploy values` writes one with all keys."""
    out: str = MISSING
    """[URI] Folder for the files; those of an earlier call are replaced."""

    def require_paths(self) -> None:
        """Check that the values are there."""
        if not storage.file_exists(self.values):
            raise MissingError(f"values={self.values}: no such file; salmonn deploy values out=… writes one")


@dataclass(frozen=True)
class DeployValuesConfig:
    out: str = MISSING
    """[URI] YAML file to write; one that is there is kept."""

    def require_free(self) -> None:
        """Check that no file would be lost."""
        if storage.file_exists(self.out):
            raise ExistsError(f"out={self.out}: is there already")


@dataclass(frozen=True)
class DeployMonitoringConfig(MonitoringSettings):
    out: str = MISSING
    """[URI] Folder for the files; those of an earlier call are replaced."""
