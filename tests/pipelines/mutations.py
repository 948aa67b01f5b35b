"""Harmless mutations of caches, manifests and runs, the same in each run, and what comes of reading what they left.

Numbers replaced in tables, bytes turned, cut and repeated; the memory that a process may take more is bounded.
Tests try a few of each kind, `python -m benchmarks.mutations` thousands.
"""

import contextlib
import io
import json
import multiprocessing
import random
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipelines.cache.index import read_index
from pipelines.cache.reader import FeatureCache
from pipelines.cli import main
from pipelines.errors import UserError
from tests.pipelines.builders import config_of, fill, make_worker, prepare_tones, train_here

MORE_NBYTES = 2_000_000_000
"""Address space that a process may take more, threads' stacks included; a huge frame count would ask for 500 GB."""
NUMBERS = [-(2**62), -1, 0, 1, 7, 1501, 2**31 - 1, 2**62]
TEXTS = ["", "../../x", "x" * 5_000, "000001.tar", "\0"]


@dataclass
class Outcome:
    """What a kind's cases came to."""

    refused: int = 0
    """Cases in which reading or a command ended in a line."""
    read: int = 0
    """The others: all was read, and right."""
    wrong: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    """[seconds] And which case."""
    peak_mb: float = 0.0
    """[MB] Resident memory at its highest."""


def write_whole(folder: Path) -> Path:
    """Write a manifest, caches of both codecs and a run."""
    folder.mkdir(exist_ok=True)
    manifest = prepare_tones(folder, num_clips=6)
    for codec in ("float16", "int8"):
        fill(folder / codec, manifest, make_worker(folder / codec, codec=codec), shard_nbytes=600_000)
    train_here(config_of((manifest, str(folder / "float16")), folder / "run", steps=2))
    return folder


def headers(path: Path, chance: random.Random) -> str:
    """Turn a bit in the header of a member of a shard's tar or in that of an array's .npy file."""
    data = bytearray(path.read_bytes())
    row = chance.choice(read_index(str(path.parent.parent), int(path.stem)).to_pylist())
    place = row[chance.choice(["speech_offset", "audio_offset"])] + chance.randrange(-512, 128)
    data[place] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    return f"turned at {place}"


def cell(path: Path, chance: random.Random) -> str:
    """Replace a number or a text in a table."""
    table = pq.read_table(path)
    name = chance.choice([field.name for field in table.schema if not pa.types.is_nested(field.type)])
    column, row = table[name].to_pylist(), chance.randrange(len(table))
    kind = table.schema.field(name).type
    if pa.types.is_string(kind):
        column[row] = chance.choice([*TEXTS, None])
    elif pa.types.is_floating(kind):
        column[row] = chance.choice([float(number) for number in NUMBERS] + [float("nan"), float("inf"), None])
    else:
        bits = 31 if pa.types.is_int32(kind) else 63
        column[row] = chance.choice([number for number in NUMBERS if -(2**bits) <= number < 2**bits] + [None])
    changed = table.set_column(table.schema.get_field_index(name), table.schema.field(name), pa.array(column, kind))
    pq.write_table(changed, path)
    return f"{name}[{row}]={str(column[row])[:20]}"


def columns(path: Path, chance: random.Random) -> str:
    """Take a column away, give it another type, or take away what stands beside the table."""
    table = pq.read_table(path)
    place = chance.randrange(len(table.schema))
    name = table.schema.names[place]
    what = chance.choice(["dropped", "texts", "twice", "rows", "bare"])
    if what == "dropped":
        table = table.remove_column(place)
    elif what == "texts":
        table = table.set_column(place, name, pa.array([str(value) for value in table[name].to_pylist()]))
    elif what == "twice":
        table = table.append_column(name, table[name])
    elif what == "rows":
        table = pa.concat_tables([table, table.slice(0, 1)])
    else:
        table = table.replace_schema_metadata(None)
    pq.write_table(table, path)
    return f"{name} {what}"


def raw(path: Path, chance: random.Random) -> str:
    """Turn a bit, cut the end off, repeat a part, or empty the file."""
    data = bytearray(path.read_bytes())
    place, what = chance.randrange(len(data)), chance.choice(["turned", "cut", "repeated", "empty"])
    if what == "turned":
        data[place] ^= 1 << chance.randrange(8)
    elif what == "cut":
        del data[place:]
    elif what == "repeated":
        data[place:place] = data[place : place + 64]
    else:
        data.clear()
    path.write_bytes(data)
    return f"{what} at {place}"


def value(path: Path, chance: random.Random) -> str:
    """Replace a value somewhere in a JSON file."""
    content = json.loads(path.read_text())
    inner = content
    while isinstance(inner, dict) and inner:
        outer, key = inner, chance.choice(sorted(inner))
        inner = inner[key]
        if chance.random() < 0.3:
            break
    outer[key] = chance.choice([None, -1, 2**62, "x", [], {}, 1.5])
    path.write_text(json.dumps(content))
    return f"{key}={outer[key]!r}"


def line_value(path: Path, chance: random.Random) -> str:
    """Replace a value in one of a file's JSON lines."""
    lines = path.read_text().splitlines()
    place = chance.randrange(len(lines))
    path.write_text(lines[place])
    what = value(path, chance)
    lines[place] = path.read_text()
    path.write_text("".join(f"{line}\n" for line in lines))
    return f"line {place}: {what}"


KINDS: dict[str, tuple[str, Callable[[Path, random.Random], str]]] = {
    "index numbers": ("{codec}/index/*.parquet", cell),
    "index columns": ("{codec}/index/*.parquet", columns),
    "index bytes": ("{codec}/index/*.parquet", raw),
    "shard bytes": ("{codec}/shards/*.tar", raw),
    "shard headers": ("{codec}/shards/*.tar", headers),
    "recipe values": ("{codec}/recipe.json", value),
    "recipe bytes": ("{codec}/recipe.json", raw),
    "plan numbers": ("{codec}/units/*.parquet", cell),
    "plan columns": ("{codec}/units/*.parquet", columns),
    "plan bytes": ("{codec}/units/*.parquet", raw),
    "manifest numbers": ("m/*s.parquet", cell),
    "manifest columns": ("m/*s.parquet", columns),
    "manifest bytes": ("m/*s.parquet", raw),
    "run values": ("run/run.json", value),
    "run bytes": ("run/run.json", raw),
    "metrics bytes": ("run/metrics.jsonl", raw),
    "metrics values": ("run/metrics.jsonl", line_value),
    "config bytes": ("run/config.yaml", raw),
    "state values": ("run/checkpoints/*/state.json", value),
    "state bytes": ("run/checkpoints/*/state.json", raw),
    "checkpoint bytes": ("run/checkpoints/*/*.safetensors", raw),
    "adapter bytes": ("run/checkpoints/*/adapter/adapter_*", raw),
}


def commands(pattern: str, folder: Path, codec: str) -> list[list[str]]:
    """Return the commands that read files of this pattern."""
    manifest, cache, run = f"manifest={folder}/m", f"cache={folder}/{codec}", f"run={folder}/run"
    plan = ["plan", "extract", manifest, cache, "whisper=tiny", "beats=tiny", f"codec={codec}", "clips_per_second=4"]
    if pattern.startswith("m/"):
        return [["manifest", "info", manifest], ["manifest", "check", manifest], plan]
    if pattern.startswith("run/"):
        export = ["export-official", run, f"out={folder}/official.pth"]
        return [["runs", "list", f"runs={folder}"], ["runs", "prune", run, "dry_run=true"], export]
    other = "int8" if codec == "float16" else "float16"
    diff = ["cache", "diff", f"a={folder}/{codec}", f"b={folder}/{other}", "sample=0.3"]
    return [["cache", "info", cache], ["cache", "verify", cache], ["cache", "ls", cache], diff, plan]


def read_all(cache: str) -> dict[str, dict[str, torch.Tensor]]:
    opened = FeatureCache(cache)
    return {clip: opened.read(row) for row, clip in enumerate(opened.rows()["clip_id"].to_pylist())}


def same(ours, theirs) -> bool:
    return all(
        torch.equal(stream, theirs[clip][name]) for clip, streams in ours.items() for name, stream in streams.items()
    )


def _try_kind(kind: str, whole: Path, folder: Path, cases: range, results) -> None:
    here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (here + MORE_NBYTES, here + MORE_NBYTES))
    torch.set_num_threads(1)
    pattern, mutate = KINDS[kind]
    clean = {codec: read_all(str(whole / codec)) for codec in ("float16", "int8")}
    outcome = Outcome()
    for case in cases:
        chance = random.Random(f"{kind} {case}")
        codec = chance.choice(["float16", "int8"])
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        path = chance.choice(sorted(folder.glob(pattern.format(codec=codec))))
        what = f"{kind} {case}: {path.relative_to(folder)}: {mutate(path, chance)}"
        start = time.perf_counter()
        refused = False
        try:
            if pattern.startswith("{codec}") and not same(read_all(str(folder / codec)), clean[codec]):
                outcome.wrong.append(f"{what}: other data were read")
        except (UserError, OSError):
            refused = True
        except BaseException as error:
            outcome.wrong.append(f"{what}: reading raised {error!r}")
        for words in commands(pattern, folder, codec):
            said = io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                code = main(words)
            if code not in (0, 1, 2):
                outcome.wrong.append(f"{what}: {' '.join(words[:2])} ended with {code}: {said.getvalue()[-300:]}")
            refused |= code in (1, 2) and words[1] != "diff"  # two codecs differ anyway
        outcome.refused += refused
        outcome.read += not refused
        outcome.slowest = max(outcome.slowest, (time.perf_counter() - start, what))
    outcome.peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    results.put(outcome)


def try_kind(kind: str, whole: Path, folder: Path, cases: range) -> Outcome:
    """Go through a kind's cases in a process whose memory is bounded."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=_try_kind, args=(kind, whole, folder, cases, results))
    process.start()
    outcome = results.get(timeout=30 + 5 * len(cases))
    process.join(timeout=10)
    return outcome
