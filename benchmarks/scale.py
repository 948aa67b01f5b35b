"""What a large cache costs each process that reads it, here and in another checkout: `python -m benchmarks.scale`.

    python -m benchmarks.scale 1000000 [CHECKOUT]

The index is a real one of clips that are not there: 111 clips a shard, two streams, and a manifest with an example of
each clip. Its files are there twice, as they are written today and in zstd, as the other checkout writes them, which
opens the latter alone. Processes open cache and examples one after the other, as the workers of a machine do; then one
opens what has grown by a hundredth. Processor seconds are of opening alone, imports left out; memory is what the
process holds for itself afterwards (anonymous), which mapped files are not.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.cache.index import TAR_BLOCK, index_schema, write_index
from pipelines.cache.layout import unit_name
from pipelines.cache.recipe import Recipe, StreamRecipe, write_recipe
from pipelines.manifest.tables import EXAMPLE_SCHEMA
from pipelines.storage.tables import ROWS_PER_GROUP

CACHES = {"cache": "snappy", "older": "zstd"}
"""Folders, and how the index files in them are compressed."""
CLIPS_PER_SHARD = 111
WIDTHS = {"speech": 1280, "audio": 768}
FRAMES = 496
PROCESSES = 3
CONSTANTS = {"corpus": "librispeech", "split": "train", "task": "asr"}
CHILD = """
import gc, json, os, resource, sys, time
folder, manifest = sys.argv[1:]
try:
    from pipelines.batches.example_set import load_examples
    from pipelines.cache.clip_index import ClipIndex
except ImportError:
    from pipelines.batches import load_examples
    from pipelines.feature_cache import FeatureCache as ClipIndex
import numpy, pandas, pyarrow, pyarrow.compute, pyarrow.dataset, pyarrow.parquet
def private():
    gc.collect(); pyarrow.default_memory_pool().release_unused()
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) * 1024
def used():
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
said, memory, seconds, clock = {}, private(), used(), time.perf_counter()
def tell(part):
    global memory, seconds, clock
    seconds_now, clock_now = used(), time.perf_counter()
    memory_now = private()
    said[part] = (seconds_now - seconds, clock_now - clock, (memory_now - memory) / 1e6)
    memory, seconds, clock = memory_now, used(), time.perf_counter()
cache = ClipIndex(folder)
tell("index")
examples = load_examples(manifest, cache, splits=["train"], tasks=[], max_missing_fraction=0.05)
examples.digest
tell("examples")
said["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
print(json.dumps(said))
"""


def write_units(folder: Path, first: int, units: int) -> None:
    """Write index files and the examples of their clips."""
    streams = {name: StreamRecipe(f"{name:0<64}", width) for name, width in WIDTHS.items()}
    recipe = Recipe(streams, "float16", "float32", "sdpa")
    if not first:
        for name in CACHES:
            write_recipe(str(folder / name), recipe, encoders=dict.fromkeys(streams, "none"), recorded={})
    schema = index_schema(recipe)
    rng = np.random.default_rng(first)
    for unit in range(first, first + units):
        ids = [rng.bytes(16).hex() for _ in range(CLIPS_PER_SHARD)]
        columns = {field.name: pa.nulls(CLIPS_PER_SHARD, field.type) for field in schema}
        columns["clip_id"] = columns["source_digest"] = pa.array(ids)
        columns["shard"] = pa.array([f"{unit_name(unit)}.tar"] * CLIPS_PER_SHARD)
        columns["seconds"] = pa.array(np.full(CLIPS_PER_SHARD, FRAMES / 50))
        offset = np.zeros(CLIPS_PER_SHARD, np.int64) + TAR_BLOCK
        for name, width in WIDTHS.items():
            nbytes = FRAMES * width * 2 + 128
            offset_N = offset + np.arange(CLIPS_PER_SHARD) * 4_000_000
            columns[f"{name}_offset"], offset = pa.array(offset_N), offset + nbytes + TAR_BLOCK
            columns[f"{name}_nbytes"] = pa.array(np.full(CLIPS_PER_SHARD, nbytes))
            columns[f"{name}_crc32"] = pa.array(rng.integers(0, 2**32, CLIPS_PER_SHARD))
            columns[f"{name}_frames"] = pa.array(np.full(CLIPS_PER_SHARD, FRAMES, np.int32))
            columns[f"{name}_width"] = pa.array(np.full(CLIPS_PER_SHARD, width, np.int32))
            columns[f"{name}_dtype"] = pa.array(["float16"] * CLIPS_PER_SHARD)
        said = {"recipe": recipe.digest, "shard_nbytes": str(CLIPS_PER_SHARD * 4_000_000 + 10_000_000)}
        table = pa.table([columns[name] for name in schema.names], schema=schema).replace_schema_metadata(said)
        write_index(str(folder / "cache"), unit, table)
        storage.write_table(str(folder / "older" / "index" / f"{unit_name(unit)}.parquet"), table)


def write_examples(folder: Path) -> None:
    """Write one example of each clip, with an answer as long as LibriSpeech's."""
    path = folder / "manifest" / "examples.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    answer = "and there lay the ship at anchor in the bay with her sails furled " * 3
    index = folder / "cache" / "index"
    names, step = storage.list_names(str(index), ".parquet"), ROWS_PER_GROUP // CLIPS_PER_SHARD
    with pq.ParquetWriter(path, EXAMPLE_SCHEMA, compression="zstd") as writer:
        for start in range(0, len(names), step):
            group = [pq.ParquetFile(index / name).read(["clip_id"]) for name in names[start : start + step]]
            ids = pa.concat_tables(group)["clip_id"].combine_chunks()
            count = len(ids)
            answers = pa.array([answer[: 60 + row % 120] for row in range(count)])
            values = {"example_id": ids, "clip_id": ids, "answer": answers, "question": pa.nulls(count, pa.string())}
            values |= {key: pa.array([text] * count) for key, text in CONSTANTS.items()}
            writer.write_table(pa.table([values[key] for key in EXAMPLE_SCHEMA.names], EXAMPLE_SCHEMA))


def measure(checkout: Path, cache: Path, snapshots: Path) -> dict[str, tuple[float, float, float]]:
    """Open in a new process: part -> processor seconds, seconds by the clock, MB that the process holds for itself."""
    code = f"import sys; sys.path.insert(0, {str(checkout)!r})\n{CHILD}"
    done = subprocess.run(
        [sys.executable, "-c", code, str(cache), str(cache.parent / "manifest")],
        cwd=checkout,
        env={**os.environ, "SALMONN_SNAPSHOTS": str(snapshots), "PYTHONPATH": str(checkout)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    parts: dict[str, tuple[float, float, float]] = json.loads(done.stdout.splitlines()[-1])
    return parts


def main(clips: int, other: str | None) -> None:
    """Write the cache and open it by turns."""
    print(f"{platform.platform()}, Python {platform.python_version()}, pyarrow {pa.__version__}; {clips} clips")
    here = Path(__file__).parents[1]
    builds = {"here": (here, "cache"), "here, zstd": (here, "older")}
    if other:
        builds[other] = Path(other), "older"
    with tempfile.TemporaryDirectory(prefix="salmonn-scale-") as temporary:
        folder, units = Path(temporary), -(-clips // CLIPS_PER_SHARD)
        start = time.perf_counter()
        write_units(folder, 0, units)
        write_examples(folder)
        sizes = {name: storage.folder_nbytes(str(folder / name / "index")) / 1e6 for name in CACHES}
        said = ", ".join(f"{sizes[name]:.0f} MB in {kind}" for name, kind in CACHES.items())
        print(f"{units} index files, {said}, written in {time.perf_counter() - start:.0f} s")
        for number in range(1, PROCESSES + 1):
            for build, (checkout, name) in builds.items():
                tell(build, f"process {number}", measure(checkout, folder / name, folder / "snapshots"))
        write_units(folder, units, max(units // 100, 1))
        for build, (checkout, name) in builds.items():
            tell(build, "grown by 1 %", measure(checkout, folder / name, folder / "snapshots"))
        kept = sum(path.stat().st_size for path in (folder / "snapshots").glob("*.arrow")) / 1e6
        print(f"snapshots: {kept:.0f} MB")


def tell(build: str, what: str, parts: dict[str, tuple[float, float, float]]) -> None:
    """Print a line of the table."""
    costs = "; ".join(
        f"{part} {parts[part][0]:.2f} processor s, {parts[part][1]:.2f} s, {parts[part][2]:.0f} MB"
        for part in ("index", "examples")
    )
    print(f"{build:<12} {what:<14} {costs}; peak {parts['peak']:.0f} MB", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000, sys.argv[2] if len(sys.argv) > 2 else None)
