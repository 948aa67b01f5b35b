"""The recipe: everything that determines a feature's bytes. Its digest names a cache's compatibility."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

from encoders.audio import CLIP_SECONDS
from encoders.features import Codec, Hear, Kernel, SpeechFrames
from pipelines import storage
from pipelines.errors import MissingError, UserError
from pipelines.interface.differences import first_difference

RECIPE = "recipe.json"
SCHEMA_VERSION = 1
PREPROCESSING_VERSION = 3
"""Raised whenever clips or spectrograms would come out differently."""


@dataclass(frozen=True)
class StreamRecipe:
    """One encoder by the contents of its weights, and how wide its frames are."""

    digest: str
    width: int


@dataclass(frozen=True)
class Recipe:
    streams: Mapping[str, StreamRecipe]
    codec: Codec
    precision: str
    attention: Kernel
    channel: str = "first"
    """first, mean, or a number from 0."""
    speech_frames: SpeechFrames = "all"
    max_clip_seconds: float = float(CLIP_SECONDS)
    """Longer clips are cut; those over 30 s are encoded in pieces (`encoders.features.piece_borders`)."""
    preprocessing_version: int = PREPROCESSING_VERSION
    schema_version: int = SCHEMA_VERSION

    @property
    def fields(self) -> dict[str, Any]:
        """The fields as JSON holds them; those that came later are left out where they say what was so before."""
        fields = asdict(self)
        if self.speech_frames == "all":
            del fields["speech_frames"]
        if self.max_clip_seconds == CLIP_SECONDS:
            del fields["max_clip_seconds"]
        return fields

    @property
    def digest(self) -> str:
        """Return the SHA-256 over all fields, as 64 hex digits."""
        return hashlib.sha256(json.dumps(self.fields, sort_keys=True).encode()).hexdigest()

    def as_heard(self, hear: Hear) -> "Recipe":
        """Return what of the recipe matters to a model that hears so: one that hears clips does not meet the rest."""
        return self if hear == "all" else replace(self, speech_frames="heard")

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "Recipe":
        """Build a recipe from its JSON fields.

        Raises:
            UserError: If they are of a schema that this version does not know.
        """
        if (schema := fields["schema_version"]) != SCHEMA_VERSION:
            raise UserError(
                f"schema {schema}, of which this version knows only {SCHEMA_VERSION}; use the version that wrote it"
            )
        streams = {name: StreamRecipe(**stream) for name, stream in fields["streams"].items()}
        return cls(**{**fields, "streams": streams})

    def require_same(self, other: "Recipe", *, here: str, there: str) -> None:
        """Refuse features of another recipe.

        Raises:
            UserError: Naming the first field that differs.
        """
        difference = first_difference(self.fields, other.fields)
        if difference:
            raise UserError(f"{there} was made with another recipe than {here}: {difference}")


def recipe_differences(ours: Recipe, theirs: Recipe) -> list[tuple[str, str, str]]:
    """Return (field, ours, theirs) of all fields that differ, nested ones as `outer.inner`; an absent one is "-"."""
    a, b = _flat(ours.fields), _flat(theirs.fields)
    return [(key, a.get(key, "-"), b.get(key, "-")) for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in fields.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: str(value)}
    return flat


def environment(threads: int) -> dict[str, Any]:
    """Return what is recorded beside a recipe but does not decide compatibility."""
    libraries = ("torch", "torchaudio", "transformers", "numpy", "soundfile", "ray", "webdataset", "pyarrow")
    return {"threads": threads, "versions": {library: version(library) for library in libraries}}


def write_recipe(cache: str, recipe: Recipe, *, encoders: Mapping[str, str], recorded: Mapping[str, Any]) -> None:
    """Write recipe.json: the fields, their digest, and beside them where the encoders were and what ran."""
    content = {
        "recipe": recipe.fields,
        "digest": recipe.digest,
        "encoders": dict(encoders),
        "recorded": dict(recorded),
    }
    uri = storage.join(cache, RECIPE)
    try:
        storage.write_bytes(uri, json.dumps(content, indent=2, sort_keys=True).encode(), exclusive=True)
    except FileExistsError:
        raise UserError(f"{uri}: another job has just begun this cache; let it end, then try again") from None


def read_recipe(cache: str) -> tuple[Recipe, dict[str, str]]:
    """Return a cache's recipe and where its encoders were.

    Raises:
        MissingError: If the folder holds no cache.
        UserError: If recipe.json is damaged or of another version.
    """
    uri = storage.join(cache, RECIPE)
    if not storage.file_exists(uri):
        raise MissingError(f"{cache}: no feature cache there ({RECIPE} is missing); salmonn extract … makes one")
    try:
        content = json.loads(storage.read_bytes(uri))
        recipe = Recipe.from_fields(content["recipe"])
        encoders = dict(content["encoders"])
    except UserError as error:
        raise UserError(f"{uri}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{uri}: not a recipe ({error})") from None
    if unnamed := [stream for stream in recipe.streams if not isinstance(encoders.get(stream), str)]:
        raise UserError(f"{uri}: encoders does not say which one made {unnamed[0]}")
    if recipe.digest != content.get("digest"):
        raise UserError(f"{uri}: its digest does not fit its fields; the file was changed by hand")
    return recipe, encoders


def require_recipe(cache: str, recipe: Recipe) -> None:
    """Refuse a cache that is there with another recipe.

    Raises:
        UserError: Naming the first field that differs.
    """
    if storage.file_exists(storage.join(cache, RECIPE)):
        recipe.require_same(read_recipe(cache)[0], here="this command", there=cache)
