"""The keys of `salmonn demo`, and the folders and stages that follow from them."""

from dataclasses import dataclass, field
from pathlib import Path

from cluster.connection import RayConfig
from pipelines import storage
from pipelines.demo.corpus import DemoSizes
from pipelines.errors import UserError
from pipelines.interface.config import require_range

TEST_SPLITS = ["test", "test-demo"]
HEARD = "heard_seconds=4.2"  # two joined sounds are no longer; the other 26 s are silence
STAGES = ("stage1", "stage2", "stage3")


@dataclass(frozen=True)
class DemoConfig:
    out: str = "demo"
    """[path] Folder for corpus, manifest, cache, runs and report."""
    seed: int = 0
    """[number] Decides the corpus, the training and nothing else."""
    steps: int = 1000
    """[steps] Of stages 1 and 2 together; stage 3 takes twelve more."""
    sizes: DemoSizes = field(default_factory=DemoSizes)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        """Check ranges."""
        require_range(self, ("seed",), low=0)
        require_range(self, ("steps",), low=10)
        if "://" in self.out:
            raise UserError(f"out={self.out}: the demo needs a local folder")


@dataclass(frozen=True)
class DemoFolders:
    """Where the demo's parts lie below `out`."""

    out: str

    @property
    def corpus(self) -> Path:
        return Path(storage.full_path(self.out)) / "corpus"

    @property
    def manifest(self) -> str:
        return storage.join(self.out, "manifest")

    @property
    def cache(self) -> str:
        return storage.join(self.out, "cache")

    def run(self, stage: str) -> str:
        return storage.join(self.out, "runs", stage)
