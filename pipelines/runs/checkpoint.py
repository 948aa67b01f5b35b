"""Checkpoints of a run: written beside the training, complete once state.json is there, and loaded again."""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm.lora import MAIN_ADAPTER, adapter_state_dict, load_adapter, save_adapter
from llm.naming import base_name, hub_name
from llm.salmonn import Salmonn
from pipelines import storage
from pipelines.errors import UserError
from pipelines.runs.folder import (
    ADAPTER,
    ALIGNER,
    CARD,
    DIGESTS,
    OPTIMIZER,
    STATE,
    best_checkpoint,
    checkpoint_uri,
    complete_steps,
    delete_checkpoint,
    find_checkpoint,
)
from pipelines.runs.model import build_beside, build_model
from pipelines.runs.spec import RunSpec, fetched, identified, require_same_llm
from pipelines.storage.ahead import DaemonPool

WRITE_SECONDS = 3600.0
"""Longest that writing a checkpoint may take before an error says so."""


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
        save_adapter(snapshot.model.llm, Path(folder) / ADAPTER, snapshot.adapter, base=_base_name(spec.llm))
        (Path(folder) / CARD).write_text(model_card(spec, step))
        if snapshot.optimizer is not None:
            torch.save(snapshot.optimizer, Path(folder) / OPTIMIZER)
        digests = {}
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                name, data = path.relative_to(folder).as_posix(), path.read_bytes()
                digests[name] = hashlib.sha256(data).hexdigest()
                storage.write_bytes(storage.join(target, name), data)
    storage.write_bytes(storage.join(target, STATE), json.dumps({"step": step, **state, DIGESTS: digests}).encode())
    best = best_checkpoint(run)
    for old in complete_steps(run)[:-keep]:
        if not best or old != best[0]:
            delete_checkpoint(run, old)


def model_card(spec: RunSpec, step: int) -> str:
    """Return the README.md of a checkpoint, in the Hugging Face hub's form: YAML for machines, then text."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("pipelines.runs"), keep_trailing_newline=True)
    return environment.get_template("model_card.md").render(spec=spec, step=step, hub_name=hub_name(spec.llm))


def _base_name(llm: str) -> str:
    return "tiny (in the folder llm of the adapter's run)" if llm == "tiny" else base_name(llm)


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


@contextmanager
def fetched_checkpoint(run: str, step: int, *names: str) -> Iterator[Path]:
    """Yield a local folder with some parts of a checkpoint, which are those that were written.

    Raises:
        UserError: If a file is not, or tensors read from it in the `with` block turn out damaged.
    """
    uri = checkpoint_uri(run, step)
    with fetched(uri, *names) as folder:
        _require_written(uri, folder, names)
        try:
            yield folder
        except SafetensorError as error:
            raise UserError(f"{uri}: the checkpoint is damaged ({error})") from None


def _require_written(uri: str, folder: Path, names: Sequence[str]) -> None:
    """Compare files with their digests in state.json, which checkpoints made before 2026-11-28 lack."""
    state = storage.read_json(storage.join(uri, STATE))
    digests = state.get(DIGESTS, {}) if isinstance(state, dict) else None
    if not isinstance(digests, dict):
        raise UserError(f"{storage.join(uri, STATE)}: damaged, not a checkpoint's state")
    for name, digest in digests.items():
        if name.partition("/")[0] not in names:
            continue
        try:
            with (folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise UserError(f"{uri}: the checkpoint is damaged ({name} is gone)") from None
        if found != digest:
            raise UserError(f"{uri}: the checkpoint is damaged ({name} is not what was written)")


def load_weights(run: str, step: int, model: Salmonn, *, adapter: str = MAIN_ADAPTER) -> None:
    """Load aligner and adapter of a checkpoint, strictly; the adapter becomes the one of this name."""
    with fetched_checkpoint(run, step, ALIGNER, ADAPTER) as folder:
        model.aligner.load_state_dict(load_file(folder / ALIGNER))
        load_adapter(model.llm, folder / ADAPTER, adapter=adapter)


def load_optimizer(run: str, step: int, optimizer: torch.optim.Optimizer) -> None:
    with fetched_checkpoint(run, step, OPTIMIZER) as folder:
        optimizer.load_state_dict(torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True))


@dataclass(frozen=True)
class LoadedRun:
    """A trained model; `spec` has the recipe of the features it hears and its encoders' paths."""

    model: Salmonn
    spec: RunSpec
    step: int
    adapter: str = MAIN_ADAPTER
    """Which LoRA of the LLM is the run's; of runs that share an LLM each has another."""


def load_run(uri: str, *, checkpoint: str = "last", device: str = "cpu", llm: str = "") -> LoadedRun:
    """Load a run's checkpoint (`best`, `last` or a step), ready to answer; `llm` says where its LLM lies now.

    Raises:
        FileNotFoundError: If there is no run.
        UserError: If it has no such complete checkpoint, or one that does not fit.
    """
    spec, step = identified(RunSpec.read(uri), uri, llm=llm), find_checkpoint(uri, checkpoint)
    model = build_model(spec, uri, device=device)
    load_weights(uri, step, model)
    return LoadedRun(model.eval(), spec, step)


def load_runs(uris: Sequence[str], *, checkpoint: str = "last", device: str = "cpu", llm: str = "") -> list[LoadedRun]:
    """Load checkpoints of runs over one LLM, which is loaded once; raises as `load_run`.

    Raises:
        UserError: If a run learnt with another LLM than the first one, or holds its weights in another type.
    """
    first = load_run(uris[0], checkpoint=checkpoint, device=device, llm=llm)
    loaded = [first]
    for uri in uris[1:]:
        spec = identified(RunSpec.read(uri), uri, llm=llm)
        require_same_llm(first.spec.llm_identity, spec.llm_identity, of=uris[0], llm=f"{spec.llm} of {uri}")
        if spec.dtype != first.spec.dtype:
            raise UserError(f"{uri}: its LLM is {spec.dtype}, that of {uris[0]} is {first.spec.dtype}")
        step, adapter = find_checkpoint(uri, checkpoint), f"beside{len(loaded)}"
        model = build_beside(first.model, spec, adapter=adapter, device=device)
        load_weights(uri, step, model, adapter=adapter)
        loaded.append(LoadedRun(model.eval(), spec, step, adapter))
    return loaded
