"""Run folders: what they hold, how a checkpoint becomes complete, how a run is loaded.

<run>/config.yaml           the resolved config
      run.json              recipe and encoders of the features, the LLM, the widths
      start.json            which checkpoint of the run before it started from, if there is one
      metrics.jsonl         one line every few steps, with the alarms that rang
      report.html           what was forecast and what came, once training has ended
      llm/                  the tiny LLM, if that is the base
      tensorboard/          event files
      checkpoints/000200/   aligner.safetensors, adapter/ (PEFT), README.md (model card), optimizer.pt, and state.json,
                            which is written last
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import torch
from pyarrow import fs
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm.loading import Precision, load_llm
from llm.lora import LoraSettings, adapter_state_dict, add_lora, load_adapter, save_adapter
from llm.salmonn import Salmonn
from pipelines import storage
from pipelines.cache.recipe import Recipe
from pipelines.storage.ahead import DaemonPool
from qformer.aligner import Aligner, AlignerConfig

STATE, CARD, ALIGNER, OPTIMIZER, ADAPTER = "state.json", "README.md", "aligner.safetensors", "optimizer.pt", "adapter"
START = "start.json"
WRITE_SECONDS = 3600.0
"""Longest that writing a checkpoint may take before an error says so."""

LoadedLLM = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@dataclass(frozen=True)
class RunSpec:
    """What is needed to build a run's model and to hear with it: run.json.

    `frames` of each stream are heard; the digest names the examples learnt from, in their order, and is empty where
    they are not known.
    """

    recipe: Recipe
    encoders: Mapping[str, str]
    llm: str
    dtype: Precision
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

    def build(self, run: str, *, device: str, seed: int = 0, llm: LoadedLLM | None = None) -> Salmonn:
        """Build the model with fresh aligner and LoRA weights, drawn from `seed`, around the LLM if that is loaded."""
        base, tokenizer = llm or self.load_llm(run, device=device)
        torch.manual_seed(seed)
        model = Salmonn(Aligner(self.aligner), add_lora(base, self.lora), tokenizer)
        return model.to(device)

    def load_llm(self, run: str, *, device: str) -> LoadedLLM:
        """Load the frozen LLM and its tokenizer."""
        with local_llm(run, self.llm) as folder:
            return load_llm(folder, precision=self.dtype, device=device)

    def model_card(self, step: int) -> str:
        """Return the README.md of a checkpoint, in the Hugging Face hub's form: YAML for machines, then text."""
        environment = jinja2.Environment(loader=jinja2.PackageLoader("pipelines"), keep_trailing_newline=True)
        return environment.get_template("model_card.md").render(spec=self, step=step)


@contextmanager
def fetched(uri: str, *names: str) -> Iterator[Path]:
    """Yield a local folder with these files and folders of a folder: itself or, if it is remote, a temporary copy."""
    filesystem, path = storage.resolve(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        yield Path(path)
        return
    here = {"source_filesystem": filesystem, "destination_filesystem": fs.LocalFileSystem()}
    with tempfile.TemporaryDirectory(prefix="salmonn-") as folder:
        for name in names:
            if storage.folder_exists(storage.join(uri, name)):
                (Path(folder) / name).mkdir()
            fs.copy_files(f"{path}/{name}", f"{folder}/{name}", **here)
        yield Path(folder)


@contextmanager
def local_llm(run: str, llm: str) -> Iterator[str]:
    """Yield a local path of the LLM; the tiny one lies in the run and is fetched for the while if that is remote."""
    if llm != "tiny":
        yield llm
        return
    with fetched(run, "llm") as folder:
        yield str(folder / "llm")


def complete_steps(run: str) -> list[int]:
    """Return the steps of a run's complete checkpoints, in order."""
    folder = storage.join(run, "checkpoints")
    names = storage.list_folders(folder)
    return sorted(int(name) for name in names if storage.file_exists(storage.join(folder, name, STATE)))


def newest_step(run: str) -> int:
    """Return the step of a run's newest complete checkpoint.

    Raises:
        ValueError: If it has none.
    """
    steps = complete_steps(run)
    if not steps:
        raise ValueError(f"{run}: has no complete checkpoint yet")
    return steps[-1]


def start_step(run: str, init_from: str) -> int:
    """Return the checkpoint of `init_from` that a run starts from: the newest at the first call, later the same.

    Raises:
        ValueError: If there is none.
    """
    uri = storage.join(run, START)
    if not storage.file_exists(uri):
        storage.write_bytes(uri, json.dumps({"init_from": init_from, "step": newest_step(init_from)}).encode())
    return int(json.loads(storage.read_bytes(uri))["step"])


def best_checkpoint(run: str, held_out: str | None = None) -> tuple[int, float] | None:
    """Return step and validation loss of the complete checkpoint with the lowest one; None if none was validated.

    Losses on other held-out examples than those of the digest `held_out`, or than the newest's, do not count.
    """
    steps = complete_steps(run)
    states = [json.loads(storage.read_bytes(storage.join(checkpoint_uri(run, step), STATE))) for step in steps]
    validated = [state for state in states if "valid_loss" in state]
    if validated and held_out is None:
        held_out = validated[-1].get("held_out")
    losses = [(state["valid_loss"], state["step"]) for state in validated if state.get("held_out") == held_out]
    return (min(losses)[1], min(losses)[0]) if losses else None


def find_checkpoint(run: str, checkpoint: str) -> int:
    """Return the step that `best`, `last` or a number stands for.

    Raises:
        ValueError: If there is no such complete checkpoint, naming those there are.
    """
    if checkpoint == "last":
        return newest_step(run)
    if checkpoint == "best":
        best = best_checkpoint(run)
        if not best:
            raise ValueError(f"{run}: checkpoint=best: none was validated; train with valid_splits and valid_every")
        return best[0]
    steps = complete_steps(run)
    if not checkpoint.isdecimal() or int(checkpoint) not in steps:
        raise ValueError(f"{run}: checkpoint={checkpoint}: there are best, last and {', '.join(map(str, steps))}")
    return int(checkpoint)


def checkpoint_uri(run: str, step: int) -> str:
    return storage.join(run, "checkpoints", f"{step:06d}")


@dataclass(frozen=True)
class Snapshot:
    """What trains, as it is at one step, in memory of its own on the CPU."""

    model: Salmonn
    """Whose settings are written, not its weights."""
    aligner: dict[str, Tensor]
    adapter: dict[str, Tensor]
    optimizer: dict[str, Any] | None
    """The optimizer's state; None for a checkpoint to answer with or to start from, not one to continue."""

    @classmethod
    def of(cls, model: Salmonn, optimizer: torch.optim.Optimizer | None) -> "Snapshot":
        """Copy the model's trained weights and the optimizer's state."""
        aligner, adapter = model.aligner.state_dict(), adapter_state_dict(model.llm)
        return cls(model, _copied(aligner), _copied(adapter), _copied(optimizer.state_dict()) if optimizer else None)


def _copied(value: Any) -> Any:
    """Return nested dictionaries and lists with copies of their tensors."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True).contiguous()
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def save_checkpoint(
    run: str, step: int, snapshot: Snapshot, spec: RunSpec, state: Mapping[str, Any], *, keep: int
) -> None:
    """Write a checkpoint, state.json last, then remove all but the newest `keep` and the best one."""
    target = checkpoint_uri(run, step)
    with tempfile.TemporaryDirectory() as folder:
        save_file(snapshot.aligner, Path(folder) / ALIGNER)
        save_adapter(snapshot.model.llm, Path(folder) / ADAPTER, snapshot.adapter)
        (Path(folder) / CARD).write_text(spec.model_card(step))
        if snapshot.optimizer is not None:
            torch.save(snapshot.optimizer, Path(folder) / OPTIMIZER)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                storage.write_bytes(storage.join(target, path.relative_to(folder).as_posix()), path.read_bytes())
    storage.write_bytes(storage.join(target, STATE), json.dumps({"step": step, **state}).encode())
    best = best_checkpoint(run)
    for old in complete_steps(run)[:-keep]:
        if not best or old != best[0]:
            _delete_checkpoint(run, old)


class CheckpointWriter:
    """Writes checkpoints in a thread while training goes on, one at a time and in their order."""

    def __init__(self) -> None:
        self._pool = DaemonPool(1)
        self._writing: tuple[int, Future[None]] | None = None

    def save(
        self,
        run: str,
        step: int,
        model: Salmonn,
        optimizer: torch.optim.Optimizer,
        spec: RunSpec,
        state: Mapping[str, Any],
        *,
        keep: int,
    ) -> None:
        """Copy what trains and begin to write it; waits for the checkpoint before, and raises what went wrong there."""
        self.wait()
        write = partial(save_checkpoint, run, step, Snapshot.of(model, optimizer), spec, state, keep=keep)
        self._writing = (step, self._pool.submit(write))

    def wait(self) -> None:
        """Wait until all is written; raises what went wrong, or TimeoutError after `WRITE_SECONDS`."""
        if not self._writing:
            return
        step, future = self._writing
        if not wait([future], WRITE_SECONDS).done:
            raise TimeoutError(f"checkpoint {step}: not written within {WRITE_SECONDS:g} s; storage is stuck")
        self._writing = None
        future.result()


def _delete_checkpoint(run: str, step: int) -> None:
    filesystem, path = storage.resolve(checkpoint_uri(run, step))
    filesystem.delete_file(f"{path}/{STATE}")
    filesystem.delete_dir(path)


@contextmanager
def fetched_checkpoint(run: str, step: int, *names: str) -> Iterator[Path]:
    """Yield a local folder with some parts of a checkpoint.

    Raises:
        ValueError: If tensors read from it in the `with` block turn out damaged.
    """
    uri = checkpoint_uri(run, step)
    with fetched(uri, *names) as folder:
        try:
            yield folder
        except SafetensorError as error:
            raise ValueError(f"{uri}: the checkpoint is damaged ({error})") from None


def load_weights(run: str, step: int, model: Salmonn) -> None:
    """Load aligner and adapter of a checkpoint, strictly."""
    with fetched_checkpoint(run, step, ALIGNER, ADAPTER) as folder:
        model.aligner.load_state_dict(load_file(folder / ALIGNER))
        load_adapter(model.llm, folder / ADAPTER)


def load_optimizer(run: str, step: int, optimizer: torch.optim.Optimizer) -> None:
    with fetched_checkpoint(run, step, OPTIMIZER) as folder:
        optimizer.load_state_dict(torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True))


@dataclass(frozen=True)
class LoadedRun:
    """A trained model; `spec` has the recipe of the features it hears and its encoders' paths."""

    model: Salmonn
    spec: RunSpec
    step: int


def load_run(uri: str, *, checkpoint: str = "last", device: str = "cpu") -> LoadedRun:
    """Load a run's checkpoint (`best`, `last` or a step), ready to answer.

    Raises:
        FileNotFoundError: If there is no run.
        ValueError: If it has no such complete checkpoint, or one that does not fit.
    """
    spec, step = RunSpec.read(uri), find_checkpoint(uri, checkpoint)
    model = spec.build(uri, device=device)
    load_weights(uri, step, model)
    return LoadedRun(model.eval(), spec, step)
