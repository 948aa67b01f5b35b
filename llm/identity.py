"""Knowing a language model by what it is, wherever it lies: read off its files in a moment, without PyTorch."""

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from llm.errors import LLMError
from llm.settings import is_hub_name

_BLOCK_NBYTES = 4096
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
_NOTES = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache"}
"""Entries of a config that say where a model came from and how it was stored, not what it computes."""


def llm_identity(path: str | Path) -> dict[str, str]:
    """Return digests of a model's config, tokenizer and weights; of a hub's model that is not here, its name.

    Of every tensor its name, shape, type and three blocks of 4 KiB count, however the files are split: another training
    changes them all, and 26 GB are looked at in about a second. Of PyTorch's own files the checksums in them count.

    Raises:
        LLMError: If the folder holds no weights, or damaged ones.
    """
    folder = Path(path)
    if is_hub_name(path):
        try:
            folder = Path(snapshot_download(str(path), local_files_only=True))
        except LocalEntryNotFoundError:
            return {"name": str(path)}
    try:
        config = json.loads((folder / "config.json").read_bytes())
        kept = {key: value for key, value in config.items() if key not in _NOTES}
        tokenizer = hashlib.sha256()
        for name in _TOKENIZERS:
            if (folder / name).is_file():
                tokenizer.update(name.encode() + (folder / name).read_bytes())
        return {
            "config": hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest(),
            "tokenizer": tokenizer.hexdigest(),
            "weights": _weights_digest(folder),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LLMError(f"{path}: cannot read the language model's files: {error}") from error


def differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """Return the parts, of those known of both, in which two models differ.

    Weights in files of another kind cannot be compared.
    """
    both = [name for name in ours if name in theirs]
    kinds = [identity["weights"].partition(":")[0] for identity in (ours, theirs) if "weights" in identity]
    return [name for name in both if ours[name] != theirs[name] and (name != "weights" or len(set(kinds)) == 1)]


def _weights_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    files = _files_of(folder, "model.safetensors")
    if files:
        tensors = {name: part for file in files for name, part in _tensors(file)}
        for name in sorted(tensors):
            digest.update(name.encode() + tensors[name])
        return f"safetensors:{digest.hexdigest()}"
    files = _files_of(folder, "pytorch_model.bin")
    if not files:
        raise LLMError(f"{folder}: no weights here, expected model.safetensors or pytorch_model.bin")
    for file in files:
        with zipfile.ZipFile(file) as archive:  # what torch.save writes
            for entry in archive.infolist():
                inside = entry.filename.partition("/")[2]  # the outermost folder has the name of the file
                digest.update(f"{file.name}/{inside} {entry.file_size} {entry.CRC:08x}\n".encode())
    return f"bin:{digest.hexdigest()}"


def _files_of(folder: Path, name: str) -> list[Path]:
    """Return the files of weights whose one file, or whose index, has a name; none if neither is there."""
    index = folder / f"{name}.index.json"
    if index.is_file():
        return [folder / file for file in sorted(set(json.loads(index.read_bytes())["weight_map"].values()))]
    return [folder / name] if (folder / name).is_file() else []


def _tensors(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name, and type, shape and some of the bytes, of each tensor in a safetensors file."""
    with path.open("rb") as file:
        header_nbytes = int.from_bytes(file.read(8), "little")
        if header_nbytes > path.stat().st_size:
            raise ValueError(f"{path.name} is damaged: its header would be {header_nbytes} bytes long")
        header = json.loads(file.read(header_nbytes))
        for name, about in header.items():
            if name == "__metadata__":
                continue
            start, end = about["data_offsets"]
            blocks = []
            for place in (start, (start + end - _BLOCK_NBYTES) // 2, end - _BLOCK_NBYTES):
                file.seek(8 + header_nbytes + max(start, place))
                blocks.append(file.read(min(_BLOCK_NBYTES, end - start)))
            yield name, f" {about['dtype']} {about['shape']} ".encode() + b"".join(blocks)
