"""The keys of `salmonn demo`, and the folders and stages that follow from them."""

from dataclasses import dataclass, field
from pathlib import Path

from cluster.config import RayConfig
from pipelines import storage
from pipelines.demo.events import (
    STORIES,
)
from pipelines.errors import UserError
from pipelines.interface.config import require_range
from pipelines.interface.words import command

TEST_SPLITS = ["test", "test-demo"]
HEARD = "heard_seconds=4.2"  # two joined sounds are no longer; the other 26 s are silence
STAGES = ("stage1", "stage2", "stage3")


@dataclass(frozen=True)
class DemoSizes:
    train_utterances: int = 512
    """[count] Spoken training phrases, one of them damaged on purpose."""
    test_utterances: int = 64
    """[count] Spoken test phrases; a multiple of 8 is balanced exactly over the words."""
    train_speakers: int = 32
    """[count] Speakers of the training phrases, men and women in turn."""
    test_speakers: int = 8
    """[count] Speakers of the test phrases, none of whom is heard in training."""
    train_clips: int = 128
    """[count] Training clips of sound events; a multiple of 8 is balanced exactly over the events."""
    test_clips: int = 48
    """[count] Test clips of sound events."""
    joined_examples: int = 8
    """[count] Training captions about two clips, one after the other."""

    def __post_init__(self) -> None:
        """Check that no folder stays empty, that both genders speak and that every story has its clip.

        Raises:
            UserError: If a count is too small.
        """
        least = {
            "train_speakers": 2,
            "test_speakers": 2,
            "train_utterances": self.train_speakers,
            "test_utterances": self.test_speakers,
            "train_clips": len(STORIES),
            "test_clips": 1,
            "joined_examples": 0,
        }
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise UserError(f"{name} {getattr(self, name)} must be at least {minimum}")

    @property
    def num_recordings(self) -> int:
        return self.train_utterances + self.test_utterances + self.train_clips + self.test_clips


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

    def next_step(self) -> str:
        """Return the command that goes on from here: the last stage's run behind a page."""
        folders = DemoFolders(self.out)
        return command("serve", run=folders.run(STAGES[-1]), manifest=folders.manifest, cache=folders.cache)


@dataclass(frozen=True)
class DemoFolders:
    """Where the demo's parts are below `out`."""

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
