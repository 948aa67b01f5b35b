"""Checkpoints of the official SALMONN code: `salmonn import-official` and `salmonn export-official`.

Such a file is `{"model": {name: tensor}}` with all that was trained. The official trainer puts its optimizer, place in
the run and config beside it. Of these the config is read, for what tensors do not tell.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from encoders.features import FRAME_RATE_HZ, is_file
from llm.identity import llm_identity
from llm.loading import llm_width
from llm.lora import (
    WEIGHTS_NAME,
    adapter_from_official,
    adapter_to_official,
    load_adapter_state,
    settings_from_official,
)
from llm.settings import is_hub_name
from pipelines import storage
from pipelines.cache.encoder_recipe import load_recipe
from pipelines.cache.recipe import Recipe
from pipelines.errors import USER_ERRORS, ExistsError, UserError
from pipelines.interface.config import save_config
from pipelines.interface.version import product_version
from pipelines.runs.checkpoint import Snapshot, fetched_checkpoint, save_checkpoint
from pipelines.runs.config import ExportConfig, ImportConfig
from pipelines.runs.folder import ADAPTER, ALIGNER, newest_step
from pipelines.runs.model import build_model
from pipelines.runs.spec import RunSpec
from qformer.aligner import Aligner
from qformer.config import CLIP_FRAMES
from qformer.official import config_from_official, load_official, official_name

OF_CONFIG = {"lora_alpha": "lora_alpha", "window_seconds": "second_per_window", "stride_seconds": "second_stride"}
"""Keys, and what the `model` part of the trainer's config calls them."""
RELEASED = {"lora_alpha": 32, "window_seconds": 0.333333, "stride_seconds": 0.333333}


def import_official(config: ImportConfig) -> None:
    """Make a run of an official checkpoint, to answer with and to start training from, its tensors as they are.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ExistsError: If `out` holds a run.
        UserError: If the file is no official checkpoint, or does not fit the LLM or the encoders; what is missing,
            left over or of another shape is named, and a key that contradicts the config in the file.
    """
    config = _with_full_paths(config)
    for name in ("config.yaml", "run.json"):
        if storage.file_exists(storage.join(config.out, name)):
            raise ExistsError(f"out={config.out}: holds a run already")
    tensors, settings = read_official(config.ckpt)
    config = _with_settings(config, settings)
    width, recipe = llm_width(config.llm), _recipe(config)
    try:
        spec = _describe(config, tensors, width, recipe)
        model = build_model(spec, config.out, device="meta")
        assert isinstance(model.aligner, Aligner)
        load_official(model.aligner, tensors, assign=True)
        load_adapter_state(model.llm, adapter_from_official(tensors), assign=True)
    except USER_ERRORS as error:
        raise UserError(f"ckpt={config.ckpt}: {error}") from None
    save_checkpoint(config.out, 0, Snapshot.of(model, None), spec, {}, keep=1)
    save_config(config, storage.join(config.out, "config.yaml"))
    spec.write(config.out)
    weights = sum(parameter.numel() for parameter in model.trainable_parameters().values())
    print(f"{config.out}: {weights:,} weights of {config.ckpt}")


def export_official(config: ExportConfig) -> None:
    """Write a run's newest aligner and adapter as an official checkpoint, the tensors as they are.

    Raises:
        FileNotFoundError: If there is no run.
        ExistsError: If `out` is there already.
        UserError: If the run has no complete checkpoint.
    """
    if storage.file_exists(config.out) or storage.folder_exists(config.out):
        raise ExistsError(f"out={config.out}: is there already")
    spec, step = RunSpec.read(config.run), newest_step(config.run)
    with fetched_checkpoint(config.run, step, ALIGNER, ADAPTER) as folder:
        aligner = {official_name(name): tensor for name, tensor in load_file(folder / ALIGNER).items()}
        adapter = adapter_to_official(load_file(folder / ADAPTER / WEIGHTS_NAME))
        with storage.staged_file(config.out, exclusive=True) as path:
            torch.save({"model": aligner | adapter}, path)
    print(f"{config.out}: {len(aligner | adapter)} tensors of {config.run}, step {step}")
    if spec.hear == "clip":
        longer = f", up to {spec.frames / FRAME_RATE_HZ:g} s" if spec.frames > CLIP_FRAMES else ""
        learnt = f"{config.run} learnt clips at their own length (hear=clip{longer})"
        print(f"{learnt}; the official code lets it hear 30 s of each")


def read_official(uri: str) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Return the tensors of an official checkpoint, each with memory of its own, and its config of the model, if any.

    Raises:
        FileNotFoundError: If there is none.
        UserError: If it is not one, or holds more than tensors and plain values.
    """
    try:
        with storage.open_file(uri) as file:
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # bytes that are no checkpoint fail in any way there is
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"holds a {foreign[1]}, which is not unpickled" if foreign else "not a file of torch.save"
        raise UserError(f"{uri}: {reason}") from None
    model = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    if not isinstance(model, dict):
        raise UserError(f"{uri}: not an official checkpoint, which has tensors by name under 'model'")
    for name, tensor in model.items():
        if not _is_weight(tensor) and not (isinstance(tensor, Tensor) and str(name).endswith(".position_ids")):
            raise UserError(f"{uri}: model.{name} holds no weights")
    named = {str(name): tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in model.items()}
    about = checkpoint.get("config")
    settings = about.get("model") if isinstance(about, dict) else None
    return named, settings if isinstance(settings, dict) else {}


def _with_settings(config: ImportConfig, settings: Mapping[str, Any]) -> ImportConfig:
    """Return the config with what the checkpoint says, or the release has, where no key is given."""
    told: dict[str, Any] = {}
    for key, name in OF_CONFIG.items():
        given, said = getattr(config, key), settings.get(name, 0)
        if (
            isinstance(said, bool)
            or not isinstance(said, int | float)
            or said < 0
            or (key == "lora_alpha" and said % 1)
        ):
            raise UserError(f"ckpt={config.ckpt}: its config says {name} {said!r}, which is no {key}")
        if given and said and given != said:
            raise UserError(f"{key}={given}: the config in ckpt={config.ckpt} says {name} {said}; leave {key} out")
        told[key] = type(RELEASED[key])(given or said or RELEASED[key])
    return replace(config, **told)


def _is_weight(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 0


def _with_full_paths(config: ImportConfig) -> ImportConfig:
    given = {key: getattr(config, key) for key in ("ckpt", "llm", "whisper", "beats", "out")}
    names = [key for key, path in given.items() if not is_file(path) or (key == "llm" and is_hub_name(path))]
    paths: dict[str, Any] = {key: storage.full_path(path) for key, path in given.items() if key not in names}
    return replace(config, **paths)


def _recipe(config: ImportConfig) -> Recipe:
    return load_recipe(
        whisper=config.whisper,
        beats=config.beats,
        codec=config.codec,
        precision=config.encoder_precision,
        attention=config.attention,
    )


def _describe(config: ImportConfig, tensors: Mapping[str, Tensor], width: int, recipe: Recipe) -> RunSpec:
    """Return the description of the run to make; sizes come from the tensors and must fit the models given."""
    aligner = config_from_official(
        tensors,
        num_heads=config.num_heads,
        window_seconds=config.window_seconds,
        stride_seconds=config.stride_seconds,
    )
    lora = settings_from_official(tensors, alpha=config.lora_alpha)
    widths = {name: stream.width for name, stream in recipe.streams.items()}
    _require_width(f"llm={config.llm}", aligner.llm_width, width)
    _require_width(f"whisper={config.whisper}", aligner.speech_width, widths["speech"])
    _require_width(f"beats={config.beats}", aligner.audio_width, widths.get("audio"))
    encoders = {"speech": config.whisper, "audio": config.beats}
    return RunSpec(
        recipe=recipe,
        encoders=encoders,
        llm=config.llm,
        dtype=config.precision,
        frames=CLIP_FRAMES,
        examples_digest="",
        aligner=aligner,
        lora=lora,
        version=product_version(),
        llm_identity=llm_identity(config.llm) if config.llm != "tiny" else {},
    )


def _require_width(given: str, expected: int | None, found: int | None) -> None:
    if expected != found:
        raise UserError(f"made for another model than {given}: width {expected or 'none'}, not {found or 'none'}")
