"""The keys of `salmonn serve`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from cluster.config import RayConfig
from pipelines.cache.recipe import read_recipe
from pipelines.errors import UserError
from pipelines.interface.config import require_range
from pipelines.runs.folder import find_checkpoint
from pipelines.runs.spec import RunSpec


@dataclass(frozen=True)
class ServeConfig:
    run: list[str] = field(default_factory=list)
    """[URIs] Run folders; several must be over the same LLM, which is then in memory once."""
    checkpoint: str = "last"
    """[last|best|step] Which of each run's checkpoints answers; best: of the lowest held-out loss."""
    llm: str = ""
    """[path|name] The frozen LLM, if it has moved since training; its weights must be the same."""
    whisper: str = ""
    """[path|tiny] The Whisper encoder, if it has moved since extraction; its weights must be the same."""
    beats: str = ""
    """[path|tiny|none] The BEATs encoder, likewise."""
    host: str = "127.0.0.1"
    """[address] Where requests are taken; by default from this machine alone."""
    port: int = 8000
    """[number] Of the address."""
    require_token: bool = True
    """[true/false] Answer only those who know the token: SALMONN_TOKEN, or else one that is made once and kept in
    ~/.salmonn/token, which only its owner may read."""
    num_beams: int = 4
    """[count] Beams of the search; 1: greedy."""
    max_new_tokens: int = 200
    """[tokens] Longest answer; a request may ask for a shorter one."""
    batch_examples: int = 16
    """[questions] Answered at the same time."""
    most_waiting: int = 64
    """[questions] That wait for that; further ones are refused with 429."""
    timeout_seconds: float = 120.0
    """[seconds] Longest that a request may take; then it ends with 504."""
    most_megabytes: float = 32.0
    """[MB] Largest request."""
    most_seconds: float = 600.0
    """[seconds] Longest sound of a request. The first 30 s of it are heard, and each answer says so."""
    kept_clips: int = 16
    """[clips] Last heard whose features are kept, up to 12 MB each: another question about one encodes nothing."""
    manifest: str = ""
    """[URI] Manifest whose examples the page offers; empty: none."""
    cache: str = ""
    """[URI] Feature cache with their clips, which are not encoded again."""
    examples: int = 20
    """[count] Examples that the page offers."""
    threads: int = 2
    """[count] CPU threads (and Ray CPUs) of the process that answers."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """[name] Where encoders and models run; auto: a GPU if the cluster has any."""
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        """Check ranges."""
        counts = ("num_beams", "max_new_tokens", "batch_examples", "most_waiting", "kept_clips", "examples", "threads")
        require_range(self, counts, low=1)
        require_range(self, ("timeout_seconds", "most_megabytes", "most_seconds"), low=0.1)
        require_range(self, ("port",), low=1, high=65535)
        if bool(self.manifest) != bool(self.cache):
            raise UserError("manifest=… and cache=… go together: the page offers examples whose clips are cached")

    def require_paths(self) -> None:
        """Check that what is read is there."""
        if not self.run:
            raise UserError("run=… is needed: the folders of the runs that answer")
        for run in self.run:
            RunSpec.read(run)
            find_checkpoint(run, self.checkpoint)
        names_of(self.run)
        if self.cache:
            read_recipe(self.cache)


def name_of(run: str) -> str:
    """Return what a run is called in requests: its folder's name."""
    return run.partition("?")[0].rstrip("/").rpartition("/")[2]


def names_of(runs: Sequence[str]) -> dict[str, str]:
    """Return name -> run.

    Raises:
        UserError: If two runs have one name.
    """
    named: dict[str, str] = {}
    for run in runs:
        if known := named.get(name_of(run)):
            raise UserError(f"run={run}: is called {name_of(run)}, as {known} is; requests could not tell them apart")
        named[name_of(run)] = run
    return named
