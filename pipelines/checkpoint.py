"""Run folders: what they hold, how a checkpoint becomes complete, how a run is loaded.

<run>/config.yaml           the resolved config
      run.json              recipe and encoders of the features, the LLM, the widths
      metrics.jsonl         one line every few steps
      llm/                  the tiny LLM, if that is the base
      checkpoints/000200/   aligner.safetensors, adapter/ (PEFT), optimizer.pt, and state.json, which is written last
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pyarrow import fs
from safetensors.torch import load_file, save_file

from llm.loading import load_llm
from llm.lora import LoraSettings, add_lora, load_adapter, save_adapter
from llm.salmonn import Salmonn
from pipelines import storage
from pipelines.recipe import DTYPES, Recipe
from qformer.aligner import Aligner, AlignerConfig

STATE, ALIGNER, OPTIMIZER, ADAPTER = "state.json", "aligner.safetensors", "optimizer.pt", "adapter"


@dataclass(frozen=True)
class RunSpec:
    """What is needed to build a run's model and to hear with it: run.json.

    `frames` of each stream are heard; the digest names the examples learnt from, in their order.
    """

    recipe: Recipe
    encoders: Mapping[str, str]
    llm: str
    dtype: str
    frames: int
    examples_digest: str
    aligner: AlignerConfig
    lora: LoraSettings

    def write(self, run: str) -> None:
        storage.write_bytes(storage.join(run, "run.json"), json.dumps(asdict(self), indent=2, sort_keys=True).encode())

    @classmethod
    def read(cls, run: str) -> "RunSpec":
        """Read run.json.

        Raises:
            FileNotFoundError: If the folder holds no run.
            ValueError: If run.json is damaged.
        """
        uri = storage.join(run, "run.json")
        if not storage.file_exists(uri):
            raise FileNotFoundError(f"{run}: no run there (run.json is missing); salmonn train … makes one")
        try:
            content = json.loads(storage.read_bytes(uri))
            return cls(
                Recipe.from_fields(content["recipe"]),
                content["encoders"],
                content["llm"],
                content["dtype"],
                content["frames"],
                content["examples_digest"],
                AlignerConfig(**content["aligner"]),
                LoraSettings(**content["lora"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{uri}: not a run's description ({error})") from None

    def build(self, run: str, *, device: str, seed: int = 0) -> Salmonn:
        """Build the model with fresh aligner and LoRA weights, drawn from `seed`."""
        llm, tokenizer = load_llm(local_llm(run, self.llm), dtype=DTYPES[self.dtype], device=device)
        torch.manual_seed(seed)
        model = Salmonn(Aligner(self.aligner), add_lora(llm, self.lora), tokenizer)
        return model.to(device)


def local_llm(run: str, llm: str) -> str:
    """Return a local path of the LLM; the tiny one lies in the run and is fetched if the run is remote."""
    if llm != "tiny":
        return llm
    filesystem, path = storage.resolve(storage.join(run, "llm"))
    if isinstance(filesystem, fs.LocalFileSystem):
        return path
    folder = tempfile.mkdtemp(prefix="salmonn-llm-")
    fs.copy_files(path, folder, source_filesystem=filesystem, destination_filesystem=fs.LocalFileSystem())
    return folder


def complete_steps(run: str) -> list[int]:
    """Return the steps of a run's complete checkpoints, in order."""
    folder = storage.join(run, "checkpoints")
    names = storage.list_folders(folder)
    return sorted(int(name) for name in names if storage.file_exists(storage.join(folder, name, STATE)))


def checkpoint_uri(run: str, step: int) -> str:
    return storage.join(run, "checkpoints", f"{step:06d}")


def save_checkpoint(
    run: str, step: int, model: Salmonn, optimizer: torch.optim.Optimizer, state: Mapping[str, Any], *, keep: int
) -> None:
    """Write a checkpoint, state.json last, then remove all but the newest `keep`."""
    target = checkpoint_uri(run, step)
    with tempfile.TemporaryDirectory() as folder:
        save_file(model.aligner.state_dict(), Path(folder) / ALIGNER)
        save_adapter(model.llm, Path(folder) / ADAPTER)
        torch.save(optimizer.state_dict(), Path(folder) / OPTIMIZER)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                storage.write_bytes(storage.join(target, path.relative_to(folder).as_posix()), path.read_bytes())
    storage.write_bytes(storage.join(target, STATE), json.dumps({"step": step, **state}).encode())
    for old in complete_steps(run)[:-keep]:
        _delete_checkpoint(run, old)


def _delete_checkpoint(run: str, step: int) -> None:
    filesystem, path = storage.resolve(checkpoint_uri(run, step))
    filesystem.delete_file(f"{path}/{STATE}")
    filesystem.delete_dir(path)


def load_weights(run: str, step: int, model: Salmonn) -> None:
    """Load aligner and adapter of a checkpoint, strictly."""
    with fetched_checkpoint(run, step) as folder:
        model.aligner.load_state_dict(load_file(Path(folder) / ALIGNER))
        load_adapter(model.llm, Path(folder) / ADAPTER)


def load_optimizer(run: str, step: int, optimizer: torch.optim.Optimizer) -> None:
    with fetched_checkpoint(run, step) as folder:
        optimizer.load_state_dict(torch.load(Path(folder) / OPTIMIZER, map_location="cpu", weights_only=True))


def fetched_checkpoint(run: str, step: int) -> "tempfile.TemporaryDirectory[str]":
    """Return a local copy of a checkpoint, removed at the end of the `with` block."""
    filesystem, path = storage.resolve(checkpoint_uri(run, step))
    folder = tempfile.TemporaryDirectory()
    fs.copy_files(path, folder.name, source_filesystem=filesystem, destination_filesystem=fs.LocalFileSystem())
    return folder


@dataclass(frozen=True)
class LoadedRun:
    """A trained model with the recipe and the encoders of the features it hears."""

    model: Salmonn
    spec: RunSpec
    step: int


def load_run(uri: str, *, device: str = "cpu") -> LoadedRun:
    """Load a run's newest complete checkpoint, ready to answer.

    Raises:
        FileNotFoundError: If there is no run.
        ValueError: If it has no complete checkpoint, or one that does not fit.
    """
    spec = RunSpec.read(uri)
    steps = complete_steps(uri)
    if not steps:
        raise ValueError(f"{uri}: has no complete checkpoint yet")
    model = spec.build(uri, device=device)
    load_weights(uri, steps[-1], model)
    return LoadedRun(model.eval(), spec, steps[-1])
