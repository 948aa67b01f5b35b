"""What a job takes along: the files of a folder that `.gitignore` and `.rayignore` do not name."""

from collections import Counter
from pathlib import Path

from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE, get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

from cluster.errors import ClusterError

MIB = 1024 * 1024
MOST_NBYTES = int(DASHBOARD_CLIENT_MAX_SIZE)
"""What the job server takes in one request: all files, not compressed."""
ZIP_NBYTES_PER_FILE = 160
"""Headers of a file in a zip, twice its path not counted."""
SHOWN = 3


def shipped_files(folder: Path) -> dict[Path, int]:
    """Return the files that Ray ships of a folder, each below it, and their bytes."""
    folder = folder.absolute()
    sizes: dict[Path, int] = {}

    def take(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(folder)] = path.stat().st_size

    _dir_travel(folder, [_get_excludes(folder, get_runtime_env_default_excludes())], take, include_gitignore=True)
    return sizes


def require_small(folder: Path, *, most_nbytes: int = MOST_NBYTES) -> int:
    """Return the bytes that are sent for a folder.

    Raises:
        ClusterError: If they are more than the job server takes, naming where most of them are.
    """
    sizes = shipped_files(folder)
    nbytes = sum(size + ZIP_NBYTES_PER_FILE + 2 * len(str(path).encode()) for path, size in sizes.items())
    if nbytes > most_nbytes:
        by_place: Counter[str] = Counter()
        for path, size in sizes.items():
            by_place[path.parts[0]] += size
        largest = ", ".join(f"{place} {size / MIB:.1f} MiB" for place, size in by_place.most_common(SHOWN))
        raise ClusterError(
            f"{folder}: {nbytes / MIB:.1f} MiB would be sent with the job, and the job server takes "
            f"{most_nbytes / MIB:.0f} MiB; the largest are {largest}; name what the job does not need in .rayignore"
        )
    return nbytes
