"""Caches, manifests and runs from strangers: whatever a file says, there is an error in a line, or right data.

Harmless mutations, the same in each run: numbers replaced in tables, bytes turned, cut and repeated. MUTATIONS says how
many of each kind; the memory that a process may take more than before is bounded. Covers pipelines.cache.bounds.
"""

import json
import multiprocessing
import os
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipelines.cache.reader import FeatureCache
from pipelines.cli import main
from pipelines.errors import UserError
from tests.pipelines.builders import config_of, fill, make_worker, prepare_tones, train_here

MUTATIONS = int(os.environ.get("MUTATIONS", "6"))
MORE_NBYTES = 2_000_000_000
"""Address space that a process may take more, threads' stacks included; a huge frame count would ask for 500 GB."""
NUMBERS = [-(2**62), -1, 0, 1, 7, 1501, 2**31 - 1, 2**62]
TEXTS = ["", "../../x", "x" * 5_000, "000001.tar", "\0"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A manifest, caches of both codecs and a run."""
    folder = tmp_path_factory.mktemp("whole")
    manifest = prepare_tones(folder, num_clips=6)
    for codec in ("float16", "int8"):
        fill(folder / codec, manifest, make_worker(folder / codec, codec=codec), shard_nbytes=600_000)
    train_here(config_of((manifest, str(folder / "float16")), folder / "run", steps=2))
    return folder


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


KINDS: dict[str, tuple[str, Callable[[Path, random.Random], str]]] = {
    "index numbers": ("{codec}/index/*.parquet", cell),
    "index columns": ("{codec}/index/*.parquet", columns),
    "index bytes": ("{codec}/index/*.parquet", raw),
    "shard bytes": ("{codec}/shards/*.tar", raw),
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
    "checkpoint bytes": ("run/checkpoints/*/*.safetensors", raw),
}


def commands(folder: Path, codec: str) -> list[list[str]]:
    manifest, cache, run = f"manifest={folder}/m", f"cache={folder}/{codec}", f"run={folder}/run"
    return [
        ["cache", "info", cache],
        ["cache", "verify", cache],
        ["cache", "ls", cache],
        ["manifest", "info", manifest],
        ["manifest", "check", manifest],
        ["plan", "extract", manifest, cache, "whisper=tiny", "beats=tiny", f"codec={codec}", "clips_per_second=4"],
        ["runs", "list", f"runs={folder}"],
        ["export-official", run, f"out={folder}/official-{random.random()}.pth"],
    ]


def read_all(cache: str) -> dict[str, dict[str, torch.Tensor]]:
    opened = FeatureCache(cache)
    return {clip: opened.read(row) for row, clip in enumerate(opened.rows()["clip_id"].to_pylist())}


def same(ours, theirs) -> bool:
    return all(
        torch.equal(stream, theirs[clip][name]) for clip, streams in ours.items() for name, stream in streams.items()
    )


def try_kind(kind: str, whole: Path, folder: Path, cases: int, results) -> None:
    """Go through a kind's cases, as a process whose memory is bounded; send what went wrong."""
    here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (here + MORE_NBYTES, here + MORE_NBYTES))
    torch.set_num_threads(1)
    pattern, mutate = KINDS[kind]
    clean = {codec: read_all(str(whole / codec)) for codec in ("float16", "int8")}
    wrong = []
    for case in range(cases):
        chance = random.Random(f"{kind} {case}")
        codec = chance.choice(["float16", "int8"])
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        path = chance.choice(sorted(folder.glob(pattern.format(codec=codec))))
        what = f"{kind} {case}: {path.relative_to(folder)}: {mutate(path, chance)}"
        try:
            if not same(read_all(str(folder / codec)), clean[codec]):
                wrong.append(f"{what}: other data were read")
        except (UserError, OSError):
            pass
        except BaseException as error:
            wrong.append(f"{what}: reading raised {error!r}")
        for words in commands(folder, codec):
            if (code := main(words)) not in (0, 1, 2):
                wrong.append(f"{what}: {' '.join(words[:2])} ended with {code}")
    results.put(wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_a_file_says_there_is_a_line_or_right_data(kind, whole, tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=try_kind, args=(kind, whole, tmp_path / "c", MUTATIONS, results))
    process.start()
    wrong = results.get(timeout=30 + 5 * MUTATIONS)
    process.join(timeout=10)
    assert not wrong, "\n".join(wrong)
