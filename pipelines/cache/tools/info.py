"""`salmonn cache info`: what a feature cache holds and what it lacks."""

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

from encoders.audio import CLIP_SECONDS
from pipelines import storage
from pipelines.cache.clip_index import ClipIndex
from pipelines.cache.index import committed_units, read_rejects, shard_nbytes
from pipelines.cache.layout import UNITS, find_orphans, unit_name
from pipelines.cache.plan import count_planned_clips, count_units
from pipelines.cache.recipe import Recipe, read_recipe
from pipelines.cache.tools.config import CacheInfoConfig
from pipelines.errors import UserError
from pipelines.interface.words import counted


def cache_info(config: CacheInfoConfig) -> None:
    """Print recipe, counts, rejects by reason, and bytes by kind.

    Raises:
        FileNotFoundError: If there is no cache.
        UserError: If a shard is not as long as its index says, or of another recipe.
    """
    recipe, encoders = read_recipe(config.cache)
    units, planned = committed_units(config.cache), count_units(config.cache)
    print(f"cache      {config.cache}")
    parts = [recipe.codec, recipe.precision, f"preprocessing {recipe.preprocessing_version}"]
    parts += ["speech frames of the sound alone"] if recipe.speech_frames == "heard" else []
    parts += [f"clips up to {recipe.max_clip_seconds:g} s"] if recipe.max_clip_seconds != CLIP_SECONDS else []
    print(f"recipe     {recipe.digest[:16]}  {', '.join(parts)}")
    for name, stream in recipe.streams.items():
        print(f"{name:<10} {stream.width} wide, 50 Hz, weights {stream.digest[:16]} ({encoders[name]})")
    nbytes = sum(_checked_nbytes(config.cache, unit, recipe) for unit in sorted(units))
    missing = planned - len(units)
    state = "complete" if not missing else f"{missing} missing: salmonn extract with the same keys continues"
    print(f"shards     {len(units)} of {planned} planned ({state}), {nbytes / 1e6:.1f} MB")
    if units:
        index = ClipIndex(config.cache).rows()
        hours = (pc.sum(index["seconds"]).as_py() or 0.0) / 3600
        print(f"clips      {index.num_rows} of {count_planned_clips(config.cache)} planned, {hours:.3f} h of audio")
        _print_fidelity(index, recipe)
        _print_doubts(index)
    _print_rejects(config.cache, units)
    _print_disk(config.cache, units)


def _checked_nbytes(cache: str, unit: int, recipe: Recipe) -> int:
    with storage.open_parquet(storage.join(cache, "index", f"{unit_name(unit)}.parquet")) as file:
        schema = file.schema_arrow
    if (schema.metadata or {}).get(b"recipe", b"").decode(errors="replace") != recipe.digest:
        raise UserError(f"{cache}: shard {unit_name(unit)} was written with another recipe than recipe.json's")
    expected = shard_nbytes(schema)
    shard = storage.join(cache, "shards", f"{unit_name(unit)}.tar")
    if storage.file_nbytes(shard) != expected:
        raise UserError(f"{shard}: has {storage.file_nbytes(shard)} bytes, its index says {expected}")
    return expected


def _print_fidelity(index: pa.Table, recipe: Recipe) -> None:
    """Print how near the stored frames of the sampled clips are to those computed, and which clip is worst."""
    for stream in recipe.streams:
        sampled = index.filter(index[f"{stream}_snr_db"].is_valid())
        if sampled.num_rows:
            snrs, worst = sampled[f"{stream}_snr_db"], pc.min(sampled[f"{stream}_snr_db"]).as_py()
            clip = sampled["clip_id"][pc.index(snrs, pa.scalar(worst, pa.float32())).as_py()].as_py()
            cosine, worst_cosine = pc.mean(sampled[f"{stream}_cosine"]), pc.min(sampled[f"{stream}_worst_cosine"])
            print(
                f"fidelity   {stream}: {pc.mean(snrs).as_py():.1f} dB, the worst clip {worst:.1f} ({clip}); cosine "
                f"{cosine.as_py():.6f}, the worst frame {worst_cosine.as_py():.5f}; "
                f"{counted(sampled.num_rows, 'clip')} sampled"
            )


def _print_doubts(index: pa.Table) -> None:
    """Print of how many clips it is not certain that what was heard is what was recorded, by reason."""
    if "doubt" not in index.column_names:
        return
    doubtful = index.filter(index["doubt"].is_valid())
    print(f"doubts     {doubtful.num_rows}")
    for reason, count in Counter(doubtful["doubt"].to_pylist()).most_common():
        first = doubtful["clip_id"][pc.index(doubtful["doubt"], reason).as_py()].as_py()
        print(f"           {count} × {reason}; the first clip: {first}")


def _print_rejects(cache: str, units: frozenset[int]) -> None:
    table = read_rejects(cache, units)
    print(f"rejects    {table.num_rows}")
    for stage, count in Counter(table["stage"].to_pylist()).most_common():
        first = table["error"][pc.index(table["stage"], stage).as_py()].as_py()
        print(f"           {count} × {stage}, the first: {first}")


def _print_disk(cache: str, units: frozenset[int]) -> None:
    """Print the bytes of each kind of file, what belongs to no shard apart."""
    orphans = find_orphans(cache, units)
    lost: Counter[str] = Counter()
    for name in orphans:
        lost[name.partition("/")[0]] += storage.file_nbytes(storage.join(cache, name))
    kinds = {"shards": ("shards",), "index": ("index", "rejects"), "plan": (UNITS,), "jobs": ("jobs",)}
    sizes = {
        kind: sum(storage.folder_nbytes(storage.join(cache, name)) - lost[name] for name in folders)
        for kind, folders in kinds.items()
    }
    line = ", ".join(f"{kind} {nbytes / 1e6:.1f}" for kind, nbytes in sizes.items())
    print(f"on disk    {line}, leftovers {lost.total() / 1e6:.1f} MB")
    if orphans:
        print(f"           {counted(len(orphans), 'leftover file')}: salmonn cache prune apply=true removes them")
