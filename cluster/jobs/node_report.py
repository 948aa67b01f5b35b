"""What one node sees of paths, and which packages it has: a task that runs on each of them."""

import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@dataclass(frozen=True)
class NodeReport:
    places: dict[str, str]
    """Path -> the deepest of its folders, or itself, that is there."""
    versions: dict[str, str]
    """Package -> version, empty where it is not installed; `Python` is among them."""
    free_nbytes: dict[str, int]
    """Path -> bytes that are free where it lies or would lie."""


def look(paths: Sequence[str], packages: Sequence[str]) -> NodeReport:
    """Return what the node that this runs on sees."""
    places = {path: deepest_place(path) for path in paths}
    return NodeReport(
        places,
        {"Python": platform.python_version(), **{name: _version(name) for name in packages}},
        {path: shutil.disk_usage(place).free for path, place in places.items()},
    )


def deepest_place(path: str) -> str:
    """Return the path or, if it is not there or may not be read, the deepest of the folders above it that is."""
    here = Path(path)
    while not os.access(here, os.R_OK) and here != here.parent:
        here = here.parent
    return str(here)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
