"""A disk that can be filled up, and what a cache's files are."""

import contextlib
import subprocess
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from pipelines import storage

DISK_MB = 2_000


def digests(cache: str) -> dict[str, str]:
    """The SHA-256 of every file whose bytes the manifest and the recipe decide."""
    folders = [storage.join(cache, name) for name in ("shards", "index", "rejects", "units")]
    return {
        f"{folder.partition('?')[0].rpartition('/')[2]}/{name}": sha256(
            storage.read_bytes(storage.join(folder, name))
        ).hexdigest()
        for folder in folders
        for name in storage.list_names(folder)
    }


@contextlib.contextmanager
def small_disk(folder: Path, *, megabytes: int = DISK_MB) -> Iterator[Path]:
    """Mount a file system of a few hundred megabytes; only root may."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no small disk to fill: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def full(disk: Path) -> Iterator[None]:
    """Let the disk have no byte left."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(65_536))
    try:
        yield
    finally:
        ballast.unlink()
