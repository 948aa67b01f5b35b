"""Covers pipelines.cache.clip_index, pipelines.cache.read_config, pipelines.storage.ahead, pipelines.storage.memory,
pipelines.storage.ranges, pipelines.storage.threads.
"""

import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import psutil
import pytest
import torch

from benchmarks.range_server import range_server
from encoders.codecs import dequantise
from encoders.features import Heard
from llm.salmonn import Batch
from pipelines import storage
from pipelines.batches.batch import make_batch, read_batch
from pipelines.batches.example_set import load_examples
from pipelines.cache.read_config import ReadConfig
from pipelines.cache.reader import FeatureCache
from pipelines.errors import JobIncompleteError
from pipelines.storage.ahead import DaemonPool, ReadAhead
from pipelines.storage.memory import BatchMemory
from pipelines.storage.ranges import Extent, RangedFile
from pipelines.training.preflight import open_run
from pipelines.training.worker.loop import TrainWorker
from tests.pipelines.builders import config_of, fill, make_worker, prepare_tones


@pytest.fixture(scope="module", params=["float16", "int8"])
def corpus(request, tmp_path_factory) -> tuple[str, Path]:
    """A manifest of 10 clips of different lengths, and its cache of several shards."""
    folder = tmp_path_factory.mktemp(request.param)
    manifest = prepare_tones(folder, num_clips=10)
    fill(folder / "c", manifest, make_worker(folder / "c", codec=request.param), shard_nbytes=1_000_000)
    return manifest, folder / "c"


@pytest.fixture
def copied(corpus, tmp_path) -> Path:
    shutil.copytree(corpus[1], tmp_path / "c")
    return tmp_path / "c"


def shard_of(cache: FeatureCache, position: int) -> Path:
    return Path(cache.uri) / "shards" / cache.rows()["shard"][position].as_py()


def arrays_of(cache: FeatureCache, position: int) -> dict[str, torch.Tensor]:
    """A clip's streams by NumPy alone, from the bytes that the index names."""
    row = cache.rows().slice(position, 1).to_pylist()[0]
    data = shard_of(cache, position).read_bytes()
    streams = {}
    for stream, codec in (("speech", cache.recipe.codec), ("audio", cache.recipe.codec)):
        shape, dtype = (row[f"{stream}_frames"], row[f"{stream}_width"]), np.dtype(row[f"{stream}_dtype"])
        end = row[f"{stream}_offset"] + row[f"{stream}_nbytes"]
        values = np.frombuffer(data, dtype, shape[0] * shape[1], end - shape[0] * shape[1] * dtype.itemsize)
        parts = {"": torch.from_numpy(values.reshape(shape).copy())}
        if codec == "int8":
            end = row[f"{stream}_scale_offset"] + row[f"{stream}_scale_nbytes"]
            parts["scale"] = torch.from_numpy(np.frombuffer(data, np.float32, shape[1], end - 4 * shape[1]).copy())
        streams[stream] = dequantise(parts, codec)
    return streams


def heard(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """What the aligner gets: the frames in float32."""
    frames = []
    for stored, scale in ((batch.speech, batch.speech_scale), (batch.audio, batch.audio_scale)):
        frames.append(stored.float() if scale is None else stored.float() * scale.unsqueeze(1))
    return frames[0], frames[1]


@pytest.mark.parametrize("verify_fraction", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("frames", [60, 1500])
def test_batch_is_bit_for_bit_that_of_the_stored_arrays(corpus, frames, verify_fraction):
    manifest, folder = corpus
    cache = FeatureCache(str(folder), ReadConfig(threads=3, verify_fraction=verify_fraction))
    examples = load_examples(manifest, cache, splits=[], tasks=[], max_missing_fraction=0)
    picked = [(0, index) for index in (7, 0, 3, 9, 3)]
    batch = read_batch(examples, cache, picked, heard=Heard(frames), prompt_seed=None)
    streams = [arrays_of(cache, int(examples.positions[index])) for _, index in picked]
    expected = make_batch(streams, batch.questions, batch.answers, heard=Heard(frames))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(heard(batch), heard(expected), strict=True))
    assert torch.equal(batch.audio_frames, expected.audio_frames)
    assert batch.speech.dtype == (torch.int8 if cache.recipe.codec == "int8" else torch.float16)


def test_stored_batch_gives_the_loss_of_float32(corpus, tmp_path):
    manifest, folder = corpus
    config = config_of((manifest, str(folder)), tmp_path / "run")
    open_run(config, pending=[])
    worker = TrainWorker(config, 0, 1, torch.device("cpu"))
    examples = worker.examples
    batch = read_batch(examples, worker.cache, [(0, 0), (0, 1)], heard=Heard(100), prompt_seed=None)
    speech, audio = heard(batch)
    floats = replace(batch, speech=speech, audio=audio, speech_scale=None, audio_scale=None)
    worker.model.eval()
    assert worker.model.loss(batch).total.item() == worker.model.loss(floats).total.item()
    assert worker.model.loss(batch.to("cpu")).total.item() == worker.model.loss(floats).total.item()


def test_only_the_frames_that_are_heard_are_read(copied):
    cache = FeatureCache(str(copied), ReadConfig(verify_fraction=0.0))
    clean = cache.read_frames([0], frames=20)
    row, path = cache.rows().slice(0, 1).to_pylist()[0], shard_of(cache, 0)
    data = bytearray(path.read_bytes())
    for stream in ("speech", "audio"):
        end = row[f"{stream}_offset"] + row[f"{stream}_nbytes"]
        data[end - 1] ^= 0x55  # the last frame's
    path.write_bytes(data)
    again = cache.read_frames([0], frames=20)
    assert all(torch.equal(again[stream].frames, clean[stream].frames) for stream in clean)
    with pytest.raises(ValueError, match="is damaged"):
        FeatureCache(str(copied), ReadConfig(verify_fraction=1.0)).read_frames([0], frames=20)


READS = [ReadConfig(threads=1, verify_fraction=fraction) for fraction in (0.0, 0.5, 1.0)]
POSITIONS = [4, 0, 2, 4]


@pytest.mark.parametrize("frames", [20, None])
def test_bytes_that_reading_takes_are_known_before(corpus, monkeypatch, frames):
    fetched, preadv = [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda *words: fetched.append(preadv(*words)) or fetched[-1])
    for read in READS:
        cache, _ = FeatureCache(str(corpus[1]), read), fetched.clear()
        cache.read_frames(POSITIONS, frames=frames)
        assert cache.read_nbytes(POSITIONS, frames=frames).sum() == sum(fetched) > 0


@pytest.mark.parametrize("gap", [10_000, 1 << 20])
def test_bytes_that_an_object_store_gives_besides_are_known_too(corpus, keys, monkeypatch, gap):
    fetched, fetch = [], RangedFile._fetch

    def watch(self: RangedFile, near: list[Extent]) -> None:
        fetched.append(near[-1].end - near[0].offset)
        fetch(self, near)

    monkeypatch.setattr(RangedFile, "_fetch", watch)
    for module in ("storage.ranges", "cache.clip_index"):
        monkeypatch.setattr(f"pipelines.{module}.GAP_BYTES", gap)
    with range_server(corpus[1].parents[1]) as server:
        for read in READS:
            cache, _ = FeatureCache(server.uri(f"{corpus[1].parent.name}/c"), read), fetched.clear()
            cache.read_frames(POSITIONS, frames=20)
            assert cache.read_nbytes(POSITIONS, frames=20).sum() == sum(fetched) > 0


def test_the_verified_share_is_the_asked_one_and_always_the_same(copied):
    ids = FeatureCache(str(copied)).rows()["clip_id"].to_pylist()
    for path in (copied / "shards").iterdir():
        path.write_bytes(bytes(path.stat().st_size))

    def damaged(fraction: float) -> set[str]:
        cache, found = FeatureCache(str(copied), ReadConfig(verify_fraction=fraction)), set()
        for position, clip_id in enumerate(ids):
            try:
                cache.read_frames([position])
            except ValueError:
                found.add(clip_id)
        return found

    assert damaged(0.0) == set() and damaged(1.0) == set(ids)
    assert damaged(0.5) == damaged(0.5) and set() < damaged(0.5) < set(ids)
    assert damaged(0.3) <= damaged(0.5)


@pytest.mark.parametrize("verify_fraction", [0.0, 1.0])
def test_truncated_shard_is_an_error_that_names_shard_and_clip(copied, verify_fraction):
    cache = FeatureCache(str(copied), ReadConfig(verify_fraction=verify_fraction))
    cache.read_frames([0])
    path, clip_id = shard_of(cache, 0), cache.rows()["clip_id"][0].as_py()
    os.truncate(path, 5_000)  # while it is open
    with pytest.raises(ValueError, match=rf"{path}: clip {clip_id}: ends before byte \d+"):
        cache.read_frames([0])


def test_filesystem_that_gives_less_than_asked_is_asked_again(corpus, monkeypatch):
    cache = FeatureCache(str(corpus[1]))
    expected, whole = cache.read(2), os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda file, buffers, offset: whole(file, [buffer[:1001] for buffer in buffers[:2]], offset)
    )
    assert all(torch.equal(frames, expected[stream]) for stream, frames in cache.read(2).items())


def test_deleted_shard_is_an_error_that_names_shard_and_clip(copied):
    cache = FeatureCache(str(copied))
    path, clip_id = shard_of(cache, 0), cache.rows()["clip_id"][0].as_py()
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{path}: clip {clip_id}: no such file"):
        cache.read_frames([0])


def test_many_threads_read_right_while_few_shards_are_open(corpus, monkeypatch):
    monkeypatch.setattr("pipelines.cache.reader.OPEN_SHARDS", 1)
    cache = FeatureCache(str(corpus[1]), ReadConfig(threads=8, verify_fraction=1.0))
    assert len(set(cache.rows()["shard"].to_pylist())) > 1
    for _ in range(5):
        cache.read_frames(list(range(10)) * 4)
    assert len(cache._shards) == 1


def block(monkeypatch, released: threading.Event) -> None:
    """Let no read of a shard come back before `released`: a disk or mount that hangs."""
    monkeypatch.setattr(RangedFile, "read", lambda self, extents: released.wait())


def test_storage_that_hangs_ends_in_an_error_that_names_the_clip(corpus, monkeypatch):
    released = threading.Event()
    block(monkeypatch, released)
    cache = FeatureCache(str(corpus[1]), ReadConfig(timeout_seconds=0.2))
    start = time.perf_counter()
    with pytest.raises(TimeoutError, match=r"shards/\d+\.tar: clip \w+: not read within 0\.2 s"):
        cache.read_frames([0, 1])
    assert time.perf_counter() - start < 5
    released.set()


@pytest.mark.parametrize("fault", ["hang", "delete", "truncate"])
def test_training_ends_with_the_readers_error(corpus, copied, tmp_path, monkeypatch, fault):
    """In the middle of the run, when the shards lose what they held."""
    config = config_of((corpus[0], str(copied)), tmp_path / "run", steps=50)
    config = replace(config, read=ReadConfig(timeout_seconds=0.5, ahead_steps=1))
    open_run(config, pending=[])
    worker, released = TrainWorker(config, 0, 1, torch.device("cpu")), threading.Event()
    update = worker._update

    def break_storage(*sums: object) -> bool:
        if worker.step == 2:
            if fault == "hang":
                block(monkeypatch, released)
            for path in (copied / "shards").iterdir() if fault != "hang" else ():
                os.truncate(path, 0)
                if fault == "delete":
                    path.unlink()
            monkeypatch.setattr(worker.cache, "_shards", type(worker.cache._shards)(4))
        return update(*sums)

    monkeypatch.setattr(worker, "_update", break_storage)
    errors = {"hang": "not read within", "delete": "no such file", "truncate": "ends before byte"}
    # What may come back is tried again by others (restarts); what is damaged or gone is the end.
    error = TimeoutError if fault == "hang" else JobIncompleteError
    with pytest.raises(error, match=rf"shards/\d+\.tar: clip \w+: {errors[fault]}"):
        worker.run()
    assert 2 < worker.step < 10
    released.set()


@pytest.fixture
def keys(monkeypatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def test_whole_shards_are_fetched_once_each_and_give_the_same(corpus, keys, monkeypatch):
    fetched: list[str] = []
    original = storage.open_copy

    def open_copy(uri: str) -> BinaryIO:
        fetched.append(uri)
        return original(uri)

    monkeypatch.setattr(storage, "open_copy", open_copy)
    with range_server(corpus[1].parents[1]) as server:
        remote = FeatureCache(server.uri(f"{corpus[1].parent.name}/c"), whole_shards=9)
        local = FeatureCache(str(corpus[1]))
        for positions in ([4, 0, 2], [9, 1, 3, 5], [8, 7, 6]):
            ours, theirs = (cache.read_frames(positions, frames=70) for cache in (remote, local))
            assert all(torch.equal(ours[stream].frames, theirs[stream].frames) for stream in theirs)
    assert len(fetched) == len(set(fetched)) == len(set(local.rows()["shard"].to_pylist())) > 1


def test_object_store_gives_the_same_batches_in_few_requests(corpus, keys):
    local = FeatureCache(str(corpus[1])).read_frames([4, 0, 2], frames=70)
    with range_server(corpus[1].parents[1]) as server:
        name = corpus[1].parent.name
        cache = FeatureCache(server.uri(f"{name}/c"), ReadConfig(verify_fraction=1.0))
        remote = cache.read_frames([4, 0, 2], frames=70)
    for stream, stored in local.items():
        assert torch.equal(stored.frames, remote[stream].frames)
        assert stored.scale is None or torch.equal(stored.scale, remote[stream].scale)


def test_object_store_that_stops_answering_ends_in_an_error(corpus, keys):
    with range_server(corpus[1].parents[1]) as server:
        cache = FeatureCache(server.uri(f"{corpus[1].parent.name}/c"), ReadConfig(timeout_seconds=3.0))
        cache.read_frames([0])
        os.kill(server.process.pid, signal.SIGSTOP)
        while psutil.Process(server.process.pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)  # all of its threads take the signal, when they get a processor
        with pytest.raises(TimeoutError, match=r"shards/\d+\.tar.*: clip \w+: not read within 3 s"):
            cache.read_frames([1])


def test_near_ranges_of_an_object_are_fetched_together(tmp_path):
    pa = pytest.importorskip("pyarrow")
    content = os.urandom(5 << 20)
    (tmp_path / "x").write_bytes(content)
    fetched = []

    class Counted(pa.PythonFile):
        def read_at(self, nbytes: int, offset: int) -> bytes:
            fetched.append((offset, nbytes))
            return content[offset : offset + nbytes]

    buffers = [memoryview(bytearray(size)) for size in (10, 20, 30, 40)]
    extents = [Extent(4 << 20, buffers[:1]), Extent(100, buffers[1:3]), Extent(900_000, buffers[3:])]
    RangedFile(Counted((tmp_path / "x").open("rb"))).read(extents)
    assert fetched == [(100, 899_940), (4 << 20, 10)]
    assert [bytes(b) for b in buffers] == [
        content[4 << 20 : (4 << 20) + 10],
        content[100:120],
        content[120:150],
        content[900_000:900_040],
    ]


def test_memory_that_is_held_is_never_given_out_and_what_is_let_go_serves_again():
    memory = BatchMemory()
    place = memory.empty(3000).ctypes.data  # nobody holds it
    frames = torch.from_numpy(memory.empty(4096)).view(torch.float16)[8:16]
    assert frames.data_ptr() == place + 16
    frames[:] = 1
    others = [memory.empty(4001)[1:] for _ in range(20)]
    assert len({place, *(other.ctypes.data for other in others)}) == 21
    for other in others:
        other[:] = 0
    assert frames.eq(1).all()
    kept = {other.ctypes.data for other in others}
    del other, others, frames
    assert memory.empty(2049).ctypes.data == place
    assert memory.empty(2048).ctypes.data not in kept


def test_batches_read_into_used_memory_are_those_read_into_fresh(corpus):
    cache = FeatureCache(str(corpus[1]), ReadConfig(threads=3))
    order = [[0, 3], [7, 1, 2], [9, 9], [3, 0], [5, 7], [8, 6], [1, 4, 3]] * 3
    places = set()
    for positions in order:
        ours, fresh = (reader.read_frames(positions) for reader in (cache, FeatureCache(cache.uri)))
        places.add(ours["speech"].frames.data_ptr())
        for stream, stored in ours.items():
            assert stored.frames.equal(fresh[stream].frames)
            stored.frames[:] = 7
    assert len(places) < len(order) / 2


def test_reading_ahead_keeps_the_order_and_holds_no_more_than_asked():
    begun: list[int] = []
    steps = ReadAhead(lambda step: begun.append(step) or step, range(3, 9), ahead_steps=2, timeout_seconds=5)
    time.sleep(0.1)
    assert begun == [3, 4]
    assert [steps.take() for _ in range(6)] == [3, 4, 5, 6, 7, 8]


def test_reader_that_hangs_or_fails_ends_in_an_error():
    released = threading.Event()
    hung = ReadAhead(lambda step: released.wait(), range(5), ahead_steps=1, timeout_seconds=0.1)
    with pytest.raises(TimeoutError, match=r"step 0: nothing was read for 0\.1 s"):
        hung.take()
    released.set()

    def fail(step: int) -> None:
        raise TimeoutError("the store's own")

    with pytest.raises(TimeoutError, match="the store's own"):
        ReadAhead(fail, range(5), ahead_steps=1, timeout_seconds=5).take()


def test_threads_end_with_their_pool():
    before = set(threading.enumerate())
    pool = DaemonPool(3)
    assert pool.submit(divmod, 7, 2).result() == (3, 1)
    threads = set(threading.enumerate()) - before
    del pool
    for thread in threads:
        thread.join(5)
    assert len(threads) == 3 and not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("keys", [{"threads": 0}, {"timeout_seconds": 0.0}, {"verify_fraction": 1.5}])
def test_settings_out_of_range_are_refused(keys):
    with pytest.raises(ValueError, match=next(iter(keys))):
        ReadConfig(**keys)
