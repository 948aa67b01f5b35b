"""What one run after another of a process has in common: the opened cache, its examples, the frozen LLM."""

import hashlib
from typing import Any

from llm.lora import remove_lora
from llm.salmonn import Salmonn
from pipelines.cache.read_config import ReadConfig
from pipelines.cache.reader import FeatureCache
from pipelines.runs.model import build_model
from pipelines.runs.spec import RunSpec, fetched
from pipelines.training.data import RunData, kept


class RunResources(RunData):
    """Opens and loads what a worker needs, and keeps it for the next run where that wants the same.

    A model is the process's only one: its LLM goes, without the adapter, into the next model that is built.
    """

    def __init__(self) -> None:
        super().__init__()
        self._caches: list[tuple[Any, FeatureCache]] = []
        self._model: tuple[Any, Salmonn] | None = None

    def open_cache(self, uri: str, read: ReadConfig, *, whole_shards: int = 0) -> FeatureCache:
        """Return `FeatureCache(uri, read, …)`; raises as that."""
        key = (uri, read, whole_shards)
        return kept(self._caches, key, lambda: FeatureCache(uri, read, whole_shards=whole_shards), limit=1)

    def build(self, spec: RunSpec, run: str, *, device: str, seed: int) -> Salmonn:
        """Return `build_model(spec, run, …)`, bit for bit; a model that was built before is of no use then."""
        key, llm = (_identity(spec, run), spec.dtype, device), None
        if self._model and self._model[0] == key:
            llm = (remove_lora(self._model[1].llm), self._model[1].tokenizer)
        self._model = None  # before another LLM is loaded
        model = build_model(spec, run, device=device, seed=seed, llm=llm)
        self._model = (key, model)
        return model


def _identity(spec: RunSpec, run: str) -> str:
    """Return the LLM's path or name; of the tiny one, which each run has, what its files hold."""
    if spec.llm != "tiny":
        return spec.llm
    with fetched(run, "llm") as folder:
        files = sorted((folder / "llm").iterdir())
        return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()
