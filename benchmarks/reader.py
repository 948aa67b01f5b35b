"""How fast batches come out of a cache: our shuffled reading against stock readers and against copying memory.

`python -m benchmarks.reader [rounds] [clips] [folder] [store]`: every contestant delivers the same batches of 8 clips
of 30 s, float16 [8, 1500, 1280] and [8, 1496, 768], in memory that nobody else holds; ours takes what was used before,
as one of the two copies does. Ours and the .npy files come in shuffled order, stock webdataset in the order of the tar.
Alternating rounds: medians, the best round, and the median of the ratios of each round. Processor time is this
process's alone: where others wait for worker processes, or for curl, those are not in it. "cold" drops the files from
the page cache before each round. Two threads of ours stand beside two worker processes of the others. The object store
is nginx on this machine, where it is installed, else `range_server`; with `store` nothing else is read. What the link
to it allows is told by curl, which asks for our ranges over as many connections and throws the bytes away.
"""

import hashlib
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.nginx_server import NginxServer, has_nginx, nginx_server
from benchmarks.range_server import range_server
from encoders.audio import Segment
from pipelines.cache.clip_index import ClipIndex
from pipelines.cache.index import member_names
from pipelines.cache.read_config import ReadConfig
from pipelines.cache.reader import FeatureCache
from pipelines.cache.recipe import Recipe, StreamRecipe, write_recipe
from pipelines.cache.shard import EncodedClip, write_shard
from pipelines.manifest.tables import Clip
from pipelines.storage.memory import BatchMemory, Bytes

BATCH, CLIPS_PER_SHARD = 8, 16
SHAPES = {"speech": (1500, 1280), "audio": (1496, 768)}
KEYS = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_EC2_METADATA_DISABLED": "true"}
Reader = Callable[[], Iterable[Any]]


class NpyFiles(Dataset[dict[str, Tensor]]):
    """A clip's streams as two .npy files."""

    def __init__(self, folder: Path, clips: int) -> None:
        self.folder, self.clips = folder, clips

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        paths = {stream: self.folder / f"{index:06d}.{stream}.npy" for stream in SHAPES}
        return {stream: torch.from_numpy(np.load(path, allow_pickle=False)) for stream, path in paths.items()}


def write_features(folder: Path, clips: int) -> list[dict[str, Tensor]]:
    """Write the same random features as a cache and as .npy files, and return them."""
    recipe = Recipe({name: StreamRecipe("", shape[1]) for name, shape in SHAPES.items()}, "float16", "float32", "sdpa")
    write_recipe(str(folder / "b" / "cache"), recipe, encoders={"speech": "", "audio": ""}, recorded={})
    (folder / "npy").mkdir()
    ram: list[dict[str, Tensor]] = []
    for unit in range(clips // CLIPS_PER_SHARD):
        encoded = []
        for number in range(unit * CLIPS_PER_SHARD, (unit + 1) * CLIPS_PER_SHARD):
            streams = {name: torch.randn(shape).half() for name, shape in SHAPES.items()}
            for name, frames in streams.items():
                np.save(folder / "npy" / f"{number:06d}.{name}.npy", frames.numpy())
            clip = Clip(
                clip_id=hashlib.sha256(str(number).encode()).hexdigest()[:32],  # which are verified follows from it
                corpus="noise",
                split="train",
                root="",
                segments=(Segment("none"),),
                seconds=30.0,
            )
            encoded.append(EncodedClip(clip, {name: {"": frames} for name, frames in streams.items()}, 30.0, ""))
            ram.append(streams)
        write_shard(str(folder / "b" / "cache"), unit, recipe, encoded)
    os.sync()
    return ram


def batches_of(clips: int) -> list[list[int]]:
    order = np.random.Generator(np.random.PCG64(0)).permutation(clips).tolist()
    return [order[first : first + BATCH] for first in range(0, clips, BATCH)]


def ours(uri: str, clips: int, **keys: Any) -> Reader:
    cache = FeatureCache(uri, ReadConfig(**keys))
    return lambda: (cache.read_frames(positions) for positions in batches_of(clips))


def fresh(nbytes: int) -> Bytes:
    return np.empty(nbytes, np.uint8)


def copies(ram: Sequence[dict[str, Tensor]], threads: int, empty: Callable[[int], Bytes] = fresh) -> Reader:
    """Copy the clips from memory into batches in memory that `empty(bytes)` gives."""
    pool = ThreadPoolExecutor(threads)

    def read() -> Iterator[dict[str, Tensor]]:
        for positions in batches_of(len(ram)):
            batch = {
                name: empty(2 * BATCH * math.prod(shape)).view(np.float16).reshape(BATCH, *shape)
                for name, shape in SHAPES.items()
            }

            def copy(row: int, batch: dict[str, Any] = batch, positions: list[int] = positions) -> None:
                for name, frames in batch.items():
                    np.copyto(frames[row], ram[positions[row]][name].numpy())

            list(pool.map(copy, range(BATCH)))
            yield {name: torch.from_numpy(frames) for name, frames in batch.items()}

    return read


def stock(urls: str, workers: int) -> Reader:
    """Read with webdataset as it comes, batched to the same tensors."""
    data = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode()
    data = data.to_tuple("speech.npy", "audio.npy").map(lambda pair: tuple(map(torch.from_numpy, pair))).batched(BATCH)
    loader = webdataset.WebLoader(data, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
    return lambda: loader


def link(cache: ClipIndex, folder: str, connections: int) -> Reader:
    """Fetch the ranges of all clips with curl, which throws them away; `folder` is the URL of the shards."""
    clips = np.arange(cache.num_clips)
    places = [cache.places(member, clips, None) for member in member_names(cache.recipe)]
    starts, ends = (np.stack([getattr(place, what) for place in places]) for what in ("start", "end"))
    wanted = [
        f'url = "{folder}/{cache.shard(clip)}"\noutput = {os.devnull}\n'
        f"range = {starts[:, clip].min()}-{ends[:, clip].max() - 1}"
        for positions in batches_of(cache.num_clips)
        for clip in positions
    ]
    several = ["--parallel", "--parallel-max", str(connections)] if connections > 1 else []

    def read() -> Iterator[None]:
        config = "\nnext\n".join(wanted)
        command = ["curl", "--silent", "--fail", *several, "--config", "-"]
        subprocess.run(command, input=config, text=True, check=True, stderr=subprocess.PIPE)  # --parallel shows a meter
        yield from (None for _ in range(cache.num_clips // BATCH))

    return read


def timed(read: Reader, clips: int) -> tuple[float, float]:
    """Return the seconds of one pass by the clock and by the processor."""
    start, processor, batches = time.perf_counter(), time.process_time(), 0
    for _ in read():
        batches += 1
    assert batches * BATCH == clips, f"{batches} batches"
    return time.perf_counter() - start, time.process_time() - processor


def forget(folder: Path) -> None:
    """Drop a folder's files from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def race(title: str, readers: dict[str, Reader], clips: int, rounds: int, before: Callable[[], None]) -> None:
    """Time the readers in alternation; the ratios are to the first, round by round."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
    for number in range(rounds + 1):
        for name, read in readers.items():
            before()
            found = timed(read, clips)
            if number:  # the first round starts the workers
                times[name].append(found)
    gigabytes = clips * sum(2 * frames * width for frames, width in SHAPES.values()) / 1e9
    print(f"\n{title}\n\n| | samples/s | GB/s | GB/s, best | processor ms per sample | times the first's seconds |")
    print("|---|---|---|---|---|---|")
    first = next(iter(times.values()))
    for name, pairs in times.items():
        seconds, processor = zip(*pairs, strict=True)
        median, best, busy = statistics.median(seconds), min(seconds), statistics.median(processor) / clips
        ratio = statistics.median(ours / theirs for (ours, _), (theirs, _) in zip(pairs, first, strict=True))
        rates = f"{clips / median:.0f} | {gigabytes / median:.2f} | {gigabytes / best:.2f}"
        print(f"| {name} | {rates} | {1000 * busy:.2f} | {ratio:.2f} |", flush=True)


def main(rounds: int, clips: int, where: str | None, only_store: bool) -> None:
    """Write the clips, and read them from the disk and from the object store."""
    os.environ |= KEYS
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=where) as name:
        folder = Path(name)
        ram = write_features(folder, clips)
        shards = f"{{000000..{clips // CLIPS_PER_SHARD - 1:06d}}}.tar"
        if not only_store:
            race_disk(folder, shards, ram, rounds)
        del ram
        race_store(folder, shards, clips, rounds)


def race_disk(folder: Path, shards: str, ram: Sequence[dict[str, Tensor]], rounds: int) -> None:
    """Read from the disk, warm and cold."""
    cache, clips = str(folder / "b" / "cache"), len(ram)
    for threads in (1, 2):
        workers = threads if threads > 1 else 0
        files = DataLoader(
            NpyFiles(folder / "npy", clips),
            BATCH,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        readers = {
            "ours, shuffled, 5 % verified": ours(cache, clips, threads=threads),
            "ours, shuffled, all verified": ours(cache, clips, threads=threads, verify_fraction=1.0),
            "memory copy, new memory": copies(ram, threads),
            "memory copy, memory that was used": copies(ram, threads, BatchMemory().empty),
            "stock webdataset, in order": stock(f"{cache}/shards/{shards}", workers),
            "DataLoader over .npy, shuffled": lambda files=files: files,  # type: ignore[misc]
        }
        race(f"Local disk, page cache warm, {threads} thread(s)", readers, clips, rounds, lambda: None)
        readers = {name: read for name, read in readers.items() if "memory" not in name}
        race(f"Local disk, cold, {threads} thread(s)", readers, clips, rounds, lambda: forget(folder))


def race_store(folder: Path, shards: str, clips: int, rounds: int) -> None:
    """Read from the object store."""
    served = nginx_server if has_nginx() else range_server
    with served(folder) as server:
        remote, url = server.uri("b/cache"), f"http://127.0.0.1:{server.port}/b/cache/shards"
        index = ClipIndex(remote)
        for threads in (1, 2):
            readers = {
                "ours, shuffled, 5 % verified": ours(remote, clips, threads=threads),
                "stock webdataset, in order": stock(f"{url}/{shards}", threads if threads > 1 else 0),
                "the link: curl, bytes thrown away": link(index, url, threads),
            }
            title = f"Object store on this machine ({served.__name__}), {threads} thread(s)"
            race(title, readers, clips, rounds, lambda: None)
        if isinstance(server, NginxServer):
            count_requests(server, remote, clips)


def count_requests(server: NginxServer, uri: str, clips: int) -> None:
    """Print how many requests and bytes one pass takes."""
    cache = ours(uri, clips, threads=2)
    server.take_requests()
    timed(cache, clips)
    lines = server.take_requests()
    nbytes = sum(int(line.split()[9]) for line in lines)
    gets = sum('"GET ' in line for line in lines)
    print(
        f"\n{gets / clips:.2f} GET, {(len(lines) - gets) / clips:.2f} HEAD and {nbytes / clips / 1e6:.2f} MB per clip"
    )


if __name__ == "__main__":
    arguments = sys.argv[1:] + ["", "", "", ""][len(sys.argv) - 1 :]
    main(int(arguments[0] or 5), int(arguments[1] or 64), arguments[2] or None, arguments[3] == "store")
