"""What is needed to build a run's model and to hear with it: run.json."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pyarrow import fs

from encoders.features import Hear, Heard
from llm.errors import LLMError
from llm.identity import differences, llm_identity
from llm.settings import LoraSettings, Precision
from pipelines import storage
from pipelines.cache.recipe import Recipe
from pipelines.errors import MissingError, UserError
from qformer.config import AlignerConfig


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What is needed to build a run's model and to hear with it: run.json.

    `frames` of each stream are heard; the digest names the examples learnt from, in their order, and is empty where
    they are not known. The LLM is known by its identity (`llm.identity`; empty in older runs), wherever it lies.
    """

    recipe: Recipe
    encoders: Mapping[str, str]
    llm: str
    dtype: Precision
    frames: int
    examples_digest: str
    aligner: AlignerConfig
    lora: LoraSettings
    version: str = ""
    """Of this project, when the run began; empty where it was not recorded yet."""
    llm_identity: Mapping[str, str] = field(default_factory=dict)
    hear: Hear = "all"

    @property
    def heard(self) -> Heard:
        """How much of each clip the run hears."""
        return Heard(self.frames, self.hear)

    def write(self, run: str) -> None:
        storage.write_bytes(storage.join(run, "run.json"), json.dumps(asdict(self), indent=2, sort_keys=True).encode())

    @classmethod
    def read(cls, run: str) -> "RunSpec":
        """Read run.json.

        Raises:
            MissingError: If the folder holds no run.
            UserError: If run.json is damaged.
        """
        uri = storage.join(run, "run.json")
        if not storage.file_exists(uri):
            raise MissingError(f"{run}: no run there (run.json is missing); salmonn train … makes one")
        try:
            content = json.loads(storage.read_bytes(uri))
            return cls(
                recipe=Recipe.from_fields(content["recipe"]),
                encoders=content["encoders"],
                llm=content["llm"],
                dtype=content["dtype"],
                frames=content["frames"],
                examples_digest=content["examples_digest"],
                aligner=AlignerConfig(**content["aligner"]),
                lora=LoraSettings(**content["lora"]),
                version=content.get("version", ""),
                llm_identity=content.get("llm_identity", {}),
                hear=content.get("hear", "all"),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{uri}: not a run's description ({error})") from None


def identified(spec: RunSpec, run: str, *, llm: str = "") -> RunSpec:
    """Return the description with the LLM where it is now, and that LLM's identity.

    Raises:
        UserError: If there is none, or another than the run learnt with.
    """
    spec = replace(spec, llm=llm or spec.llm)
    try:
        with local_llm(run, spec.llm) as folder:
            found = llm_identity(folder)
    except LLMError as error:
        raise UserError(f"{error}{'' if llm else '; llm=… says where the LLM of the run lies now'}") from None
    require_same_llm(spec.llm_identity, found, of=run, llm=spec.llm)
    return replace(spec, llm_identity={**spec.llm_identity, **found})


def require_same_llm(known: Mapping[str, str], found: Mapping[str, str], *, of: str, llm: str) -> None:
    """Raise UserError where an LLM is known to be another than a run's."""
    if differs := differences(known, found):
        raise UserError(f"llm={llm} is another LLM than {of} learnt with: other {' and '.join(differs)}")


def require_heard(spec: RunSpec, recipe: Recipe, *, run: str, cache: str) -> None:
    """Refuse a cache that holds other features than a run hears.

    Raises:
        UserError: Naming the first field of the recipe that differs.
    """
    require_silence(spec.hear, recipe, run=run, cache=cache)
    spec.recipe.as_heard("clip").require_same(recipe.as_heard("clip"), here=run, there=cache)


def require_silence(hear: Hear, recipe: Recipe, *, run: str, cache: str) -> None:
    """Raise UserError where a run hears the silence behind a clip's sound and a cache holds none."""
    if hear == "all" and recipe.speech_frames == "heard":
        raise UserError(
            f"{cache} holds no silence behind a clip's sound (speech_frames=heard), which {run} hears (hear=all); "
            "train with hear=clip, or extract with speech_frames=all"
        )


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


def copy_llm(folder: Path, run: str) -> None:
    """Put the files of a local LLM into a run."""
    for path in sorted(folder.iterdir()):
        storage.write_bytes(storage.join(run, "llm", path.name), path.read_bytes())


@contextmanager
def local_llm(run: str, llm: str) -> Iterator[str]:
    """Yield a local path of the LLM; the tiny one is in the run, and is fetched for the block if that is remote."""
    if llm != "tiny":
        yield llm
        return
    with fetched(run, "llm") as folder:
        yield str(folder / "llm")
