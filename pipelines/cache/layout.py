"""The feature cache on disk: shards that any WebDataset tool reads, made random-access by their index.

<cache>/recipe.json            what determines the features' bytes
        units/000000.parquet   the plan: which clip goes into which shard
        shards/000042.tar      per clip: speech.npy, audio.npy, json (and their scales for int8)
        index/000042.parquet   one row per clip: where its members are in the tar; a shard exists once this file does
        rejects/000042.parquet the clips that could not be decoded, with the reason
        jobs/<time>.json       what ran; <time>/*.jsonl has a line per unit
"""

from collections.abc import Collection

from pipelines import storage
from pipelines.errors import UserError

UNITS = "units"
FOLDERS = ("shards", "index", "rejects", UNITS)
MOST_DIGITS = 16


def unit_name(unit: int) -> str:
    """Return the name that a unit's files share, without their endings."""
    return f"{unit:06d}"


def unit_files(cache: str, folder: str) -> dict[int, str]:
    """Return the Parquet files of a folder of a cache by their units, in order.

    Raises:
        UserError: If one is not named as a unit's.
    """
    files = {}
    for name in storage.list_names(storage.join(cache, folder), ".parquet"):
        stem = name.removesuffix(".parquet")
        if not (stem.isascii() and stem.isdecimal() and len(stem) < MOST_DIGITS and stem == unit_name(int(stem))):
            raise UserError(f"{storage.join(cache, folder, name)}: not named as this project names a shard's files")
        files[int(stem)] = name
    return dict(sorted(files.items()))


def find_orphans(cache: str, committed: Collection[int]) -> list[str]:
    """Return the shards and rejects without index, and what writers left unfinished, by their names in the cache."""
    known = {unit_name(unit) for unit in committed}
    orphans = []
    for folder in ("shards", "rejects"):
        names = storage.list_names(storage.join(cache, folder))
        orphans += [f"{folder}/{name}" for name in names if name.partition(".")[0] not in known]
    for folder in FOLDERS:
        orphans += [f"{folder}/{name}" for name in storage.list_unfinished(storage.join(cache, folder))]
    return orphans
