"""Encoders and the recipe of what they write."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from encoders.audio import CLIP_SECONDS
from encoders.clip_encoder import ClipEncoder, load_clip_encoder
from encoders.features import OWN_ENCODER, Codec, Kernel, SpeechFrames
from pipelines.cache.recipe import Recipe, StreamRecipe
from pipelines.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_encoder_and_recipe(
    *,
    whisper: str,
    beats: str,
    codec: Codec,
    precision: str,
    attention: Kernel = "sdpa",
    channel: str = "first",
    speech_frames: SpeechFrames = "all",
    max_clip_seconds: float = CLIP_SECONDS,
    device: str = "cpu",
) -> tuple[ClipEncoder, Recipe]:
    """Load the encoders and return them with the recipe of what they write; keys as in `ExtractConfig`.

    Raises:
        UserError: If an encoder cannot be loaded.
    """
    encoder = load_clip_encoder(
        whisper=whisper, beats=beats, device=device, dtype=DTYPES[precision], attention=attention
    )
    recipe = recipe_of(encoder, codec=codec, precision=precision)
    return encoder, replace(
        recipe, channel=channel, speech_frames=speech_frames, max_clip_seconds=float(max_clip_seconds)
    )


def load_encoder_of(recipe: Recipe, *, whisper: str, beats: str, device: str, here: str, there: str) -> ClipEncoder:
    """Load the encoders that a recipe names, to compute as it says.

    Raises:
        UserError: If an encoder cannot be loaded, or its weights are not the recipe's; `here` says whose recipe
            it is, `there` whose weights.
    """
    encoder, found = load_encoder_and_recipe(
        whisper=whisper,
        beats=beats,
        codec=recipe.codec,
        precision=recipe.precision,
        attention=recipe.attention,
        channel=recipe.channel,
        speech_frames=recipe.speech_frames,
        max_clip_seconds=recipe.max_clip_seconds,
        device=device,
    )
    recipe.require_same(replace(recipe, streams=found.streams), here=here, there=there)
    return encoder


def recorded_beats(encoders: Mapping[str, str], *, of: str) -> str:
    """Return where a cache or run says that its audio encoder was; "none" where it has none.

    Raises:
        UserError: If that is code: what comes from elsewhere does not choose what runs here.
    """
    beats = encoders.get("audio", "none")
    if OWN_ENCODER.fullmatch(beats):
        raise UserError(f"{of}: names {beats} as its encoder, which is code to be run; beats={beats} allows it")
    return beats


def load_recipe(**keys: Any) -> Recipe:
    """Return the recipe alone; keys and errors as of `load_encoder_and_recipe`."""
    return load_encoder_and_recipe(**keys)[1]


def recipe_of(encoder: ClipEncoder, *, codec: Codec, precision: str) -> Recipe:
    """Return the recipe of what an encoder writes."""
    streams = {name: StreamRecipe(encoder.digests[name], width) for name, width in encoder.widths.items()}
    return Recipe(streams=streams, codec=codec, precision=precision, attention=encoder.attention)
