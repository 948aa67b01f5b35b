"""LoRA on a frozen LLM: adding it, scaling it at run time, saving, loading, and official checkpoints' names for it."""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from llm.errors import LLMError
from llm.peft_parts import (
    LoraConfig,
    LoraLayer,
    PeftConfig,
    PeftModel,
    bitsandbytes_absent,
    get_peft_model,
    get_peft_model_state_dict,
)
from llm.settings import LoraSettings

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
MOST_NAMED = 5
"""Tensors that an error names; a checkpoint of another model would fill pages."""
MAIN_ADAPTER = "default"
"""The name of the LoRA that an LLM gets first, which PEFT's files leave out."""
_OFFICIAL_PREFIX = "llama_model."
_OFFICIAL_BUFFER = ".rotary_emb.inv_freq"  # in checkpoints of the official trainer; the frozen LLM has its own


def add_lora(llm: PreTrainedModel | PeftModel, settings: LoraSettings, *, adapter: str = MAIN_ADAPTER) -> PeftModel:
    """Wrap the LLM, in place, with trainable float32 LoRA weights over a base of any dtype; B begins at zero.

    An LLM that is wrapped already gets further weights under the name `adapter`; `use_lora` says which add to it.

    Raises:
        LLMError: If the LLM has no module of the names in `target_modules`.
    """
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.target_modules),
    )
    with warnings.catch_warnings(), bitsandbytes_absent():
        # PEFT asks for an attribute that transformers is renaming; nothing a reader could act on.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        if isinstance(llm, PeftModel):
            llm.add_adapter(adapter, config, autocast_adapter_dtype=True)
            model = llm
        else:
            model = get_peft_model(llm, config, adapter, autocast_adapter_dtype=True)
    if Path(config.base_model_name_or_path or "").exists():
        config.base_model_name_or_path = None  # a folder of this machine means nothing where the adapter goes
    return model


def use_lora(model: PeftModel, adapter: str) -> None:
    """Let the LoRA weights of this name alone add to the LLM; they do not train then."""
    if model.active_adapter != adapter:
        model.set_adapter(adapter, inference_mode=True)


def lora_layers(model: nn.Module) -> list[Any]:
    """Return the modules to which LoRA adds: PEFT's `LoraLayer`, which to a type checker is no module."""
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


@contextmanager
def lora_by_row(layers: Sequence[Any], adapters: list[str]) -> Iterator[None]:
    """Let each row of a batch have its own LoRA, by its name, in passes of the block; none of them trains.

    It is what PEFT does with `adapter_names`, but for a walk through all modules of the LLM at each pass.
    """

    def named(_: nn.Module, args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**options, "adapter_names": adapters}

    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_pre_hook(named, with_kwargs=True).remove)
        yield


def set_lora_scaling(model: PeftModel, factor: float) -> None:
    """Scale what the adapter adds by `factor`: 1.0 is alpha / rank as trained, 0.0 the bare LLM. No weight changes."""
    for layer in lora_layers(model):
        layer.set_scale(MAIN_ADAPTER, factor)


def merge_lora(model: PeftModel) -> PreTrainedModel:
    """Return the LLM with LoRA, as scaled now, added to its weights in their dtype; `model` is of no use then."""
    merged: PreTrainedModel = model.merge_and_unload()
    return merged


def adapter_state_dict(model: PeftModel, *, adapter: str = MAIN_ADAPTER) -> dict[str, Tensor]:
    """Return the LoRA weights under PEFT's file names."""
    state: dict[str, Tensor] = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    return state


def load_adapter_state(
    model: PeftModel, state: Mapping[str, Tensor], *, assign: bool = False, adapter: str = MAIN_ADAPTER
) -> None:
    """Set the LoRA weights, all of them or none, from tensors under PEFT's file names.

    With `assign` the tensors themselves, in their own dtype, become the weights, as in `Module.load_state_dict`.

    Raises:
        LLMError: If a tensor is missing, left over or of another shape; the message names them all.
    """
    own = adapter_state_dict(model, adapter=adapter)
    wrong = [f"{name} is missing" for name in own.keys() - state.keys()]
    wrong += [f"{name} is left over" for name in state.keys() - own.keys()]
    wrong += [
        f"{name} is {list(state[name].shape)} there and {list(own[name].shape)} here"
        for name in own.keys() & state.keys()
        if state[name].shape != own[name].shape
    ]
    if wrong:
        more = f"; and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
        raise LLMError(f"adapter does not fit the LLM: {'; '.join(sorted(wrong)[:MOST_NAMED])}{more}")
    weights = {_parameter_name(name, adapter): tensor for name, tensor in state.items()}
    unexpected = model.load_state_dict(weights, strict=False, assign=assign).unexpected_keys
    assert not unexpected, unexpected


def _parameter_name(name: str, adapter: str = MAIN_ADAPTER) -> str:
    """Return a LoRA weight's name in the model, which PEFT's files leave the adapter's name out of."""
    return f"{name.removesuffix('.weight')}.{adapter}.weight"


def save_adapter(
    model: PeftModel, adapter_dir: str | Path, state: Mapping[str, Tensor] | None = None, *, base: str
) -> None:
    """Write a standard PEFT folder, which `PeftModel.from_pretrained` reads as well.

    It writes the weights of `state`, an `adapter_state_dict` taken earlier, or the ones of now. `base` says which LLM
    the adapter belongs to: PEFT loads it by that name where it is asked to load both.
    """
    adapter_dir = Path(adapter_dir)
    adapter_dir.mkdir(parents=True, exist_ok=True)
    replace(model.peft_config[MAIN_ADAPTER], base_model_name_or_path=base).save_pretrained(str(adapter_dir))
    state = adapter_state_dict(model) if state is None else state
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(weights, adapter_dir / WEIGHTS_NAME, metadata={"format": "pt"})


def load_adapter(model: PeftModel, adapter_dir: str | Path, *, adapter: str = MAIN_ADAPTER) -> None:
    """Load a PEFT folder into a model that has LoRA of the same settings; dropout may differ.

    Raises:
        LLMError: If the folder is no adapter, or its settings or weights differ; the message names what does.
    """
    adapter_dir = Path(adapter_dir)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (adapter_dir / name).is_file():
            raise LLMError(f"{adapter_dir}: no adapter here, {name} is missing")
    there, here = _settings(LoraConfig.from_pretrained(str(adapter_dir))), _settings(model.peft_config[adapter])
    differs = [f"{name} is {there[name]} there and {here[name]} here" for name in here if there[name] != here[name]]
    if differs:
        raise LLMError(f"{adapter_dir}: another adapter: {'; '.join(differs)}")
    load_adapter_state(model, load_file(adapter_dir / WEIGHTS_NAME), adapter=adapter)


def _settings(config: PeftConfig) -> dict[str, object]:
    """Return what two adapters must agree on for the weights of one to mean the same in the other."""
    if not isinstance(config, LoraConfig):
        raise LLMError(f"a {config.peft_type} adapter, expected LoRA")
    return {"rank": config.r, "alpha": config.lora_alpha, "target_modules": sorted(config.target_modules or ())}


def adapter_from_official(model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the LoRA weights in the `model` entry of an official checkpoint, under PEFT's file names.

    Both spellings are read: `….lora_A.default.weight` (peft 0.3) and `….lora_A.weight`.
    """
    return {
        re.sub(rf"\.{MAIN_ADAPTER}\.weight$", ".weight", name.removeprefix(_OFFICIAL_PREFIX)): tensor
        for name, tensor in model.items()
        if name.startswith(_OFFICIAL_PREFIX) and not name.endswith(_OFFICIAL_BUFFER)
    }


def adapter_to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the LoRA weights under the names of released checkpoints."""
    return {_OFFICIAL_PREFIX + _parameter_name(name): tensor for name, tensor in state.items()}


def settings_from_official(model: Mapping[str, Tensor], *, alpha: int) -> LoraSettings:
    """Read rank and target modules off the `model` entry of an official checkpoint, whose tensors do not tell alpha.

    Raises:
        LLMError: If it holds no LoRA weights.
    """
    ranks = {name.split(".lora_A")[0]: len(tensor) for name, tensor in model.items() if ".lora_A." in name}
    if not ranks:
        raise LLMError("official checkpoint holds no LoRA weights")
    modules = {name.rpartition(".")[2] for name in ranks}
    return LoraSettings(rank=max(ranks.values()), alpha=alpha, target_modules=sorted(modules))
