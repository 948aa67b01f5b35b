"""What is needed to build a run's model and to hear with it: run.json."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pyarrow import fs

from llm.settings import LoraSettings, Precision
from pipelines import storage
from pipelines.cache.recipe import Recipe
from pipelines.errors import MissingError, UserError
from qformer.config import AlignerConfig


@dataclass(frozen=True, kw_only=True)
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
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{uri}: not a run's description ({error})") from None


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
