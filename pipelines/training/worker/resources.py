"""What one run after another of a process has in common: the opened cache, its examples, the frozen LLM."""

import gc
import hashlib
from typing import Any

from llm.loading import share_llm
from llm.salmonn import Salmonn
from pipelines.cache.read_config import ReadConfig
from pipelines.cache.reader import FeatureCache
from pipelines.runs.model import LoadedLLM, build_model, load_run_llm
from pipelines.runs.spec import RunSpec, fetched
from pipelines.training.data import RunData, kept


class RunResources(RunData):
    """Opens and loads what runs of one process need, and keeps it for runs that want the same.

    Runs may be under way side by side: each has modules of its own over the one LLM's weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self._caches: list[tuple[Any, FeatureCache]] = []
        self._llms: list[tuple[Any, LoadedLLM]] = []

    def open_cache(self, uri: str, read: ReadConfig, *, whole_shards: int = 0) -> FeatureCache:
        """Return `FeatureCache(uri, read, …)`; raises as that."""
        key = (uri, read, whole_shards)
        return kept(self._caches, key, lambda: FeatureCache(uri, read, whole_shards=whole_shards), limit=1)

    def build(self, spec: RunSpec, run: str, *, device: str, seed: int) -> Salmonn:
        """Return `build_model(spec, run, …)`, bit for bit."""
        key = (_identity(spec, run), spec.dtype, device)

        def load() -> LoadedLLM:
            gc.collect()  # the LLM before may hang in a cycle of its last model's, and a device has room for one
            return load_run_llm(spec, run, device=device)

        llm, tokenizer = kept(self._llms, key, load, limit=1)
        return build_model(spec, run, device=device, seed=seed, llm=(share_llm(llm), tokenizer))


def _identity(spec: RunSpec, run: str) -> str:
    """Return the LLM's path or name; of the tiny one, which each run has, what its files hold."""
    if spec.llm != "tiny":
        return spec.llm
    with fetched(run, "llm") as folder:
        files = sorted((folder / "llm").iterdir())
        return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()
