"""Extraction, training and answering in single processes, with a fault every second: what comes out must be the same.

Kept out of the quick tests: `make chaos` (some fifteen minutes). CHAOS_WORK_FAULTS and CHAOS_SEED change how many and
which. A fault counts if the process was at work when it came.
"""

import contextlib
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import TypeVar, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import storage
from pipelines.cache.tools.config import CacheVerifyConfig
from pipelines.cache.tools.verify import cache_verify
from pipelines.inference.answer_table import ANSWERS
from pipelines.inference.config import EvaluateConfig
from pipelines.inference.evaluate import evaluation_folder
from pipelines.manifest.corpora.table import TableConfig, prepare_table
from pipelines.runs.folder import ADAPTER, ALIGNER, checkpoint_uri
from pipelines.runs.metrics import read_metrics
from pipelines.training.config import TrainConfig
from pipelines.training.preflight import open_run
from tests.chaos.disks import digests, full, small_disk
from tests.chaos.questions import prepare_questions
from tests.chaos.work import (
    STORAGE_FAILED,
    answer_here,
    evaluate_here,
    extract_here,
    imported,
    plan_here,
    start,
    train_on,
)
from tests.pipelines.builders import config_of, fill, make_worker, prepare_tones, stores_of, train_here
from tests.s3_server import Fault, s3_server
from tests.toy import write_tone_corpus

pytestmark = pytest.mark.chaos
NUM_FAULTS = int(os.environ.get("CHAOS_WORK_FAULTS", "20"))
"""Of each test."""
SEED = int(os.environ.get("CHAOS_SEED", "0"))
HANG_SECONDS = 300
MOST_TRIES = 200
"""Of a piece of work; a dozen are usual."""
NUM_FROZEN = 3
"""At a time."""
KILLED, FROZEN, DISK = "SIGKILL", "frozen, done by another, goes on", "disk full"

Fails = Callable[[], AbstractContextManager[None]]
WorkT = TypeVar("WorkT")


def _is_sent(number: signal.Signals, process: ForkServerProcess) -> bool:
    """Send a signal; tell whether there was still a process to take it."""
    assert process.pid
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return False
    return True


class Faults:
    """Runs a piece of work again and again, with one fault each time, and counts those that met it."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.tally: Counter[str] = Counter()
        self.ends: Counter[int] = Counter()
        self.span_seconds = 2.0
        """Within which a fault comes: how long an undisturbed process takes."""

    def measure(self, work: Callable[..., None], *arguments: object) -> None:
        """Let the work be done undisturbed, once the server of processes has imported everything."""
        assert self._end_of(start(imported)) == 0
        began = time.monotonic()
        assert self.finish(work, *arguments)
        self.span_seconds = time.monotonic() - began
        print(f"undisturbed: {self.span_seconds:.1f} s", flush=True)

    def finish(self, work: Callable[..., None], *arguments: object) -> bool:
        """Let what is left be done undisturbed."""
        return self._end_of(start(work, *arguments)) == 0

    def kill(self, work: Callable[..., None], *arguments: object) -> bool:
        """Kill the process at a random moment; tell whether it had ended well before."""
        process = self._under_way(work, *arguments)
        process.kill()
        return self._count(KILLED, self._end_of(process), met=-signal.SIGKILL)

    def freeze(self, work: Callable[..., None], *arguments: object, ends: Collection[int] = (0,)) -> bool:
        """Stop some processes one after the other, let another do all the work, and let them go on together."""
        frozen = [self._frozen(work, *arguments) for _ in range(NUM_FROZEN)]
        assert self.finish(work, *arguments)
        for process in frozen:
            self.tally[FROZEN] += _is_sent(signal.SIGCONT, process)
        found = [self._end_of(process) for process in frozen]
        self.ends.update(found)
        assert set(found) <= set(ends), found
        return True

    def _frozen(self, work: Callable[..., None], *arguments: object) -> ForkServerProcess:
        process = self._under_way(work, *arguments)
        _is_sent(signal.SIGSTOP, process)
        return process

    def disturb(self, name: str, fault: Fails, seconds: float, work: Callable[..., None], *arguments: object) -> bool:
        """Let what the process stores to fail for some time, as often as it lives; tell whether it ended well."""
        process = start(work, *arguments)
        while process.is_alive():
            process.join(self.rng.uniform(0, self.span_seconds / 3))
            if process.is_alive():
                with fault():
                    self.tally[name] += process.is_alive()  # to bring it about takes a while
                    process.join(self.rng.uniform(0, seconds))
        end = self._end_of(process)
        self.ends[end] += 1
        assert end in (0, STORAGE_FAILED)
        return end == 0

    def _under_way(self, work: Callable[..., None], *arguments: object) -> ForkServerProcess:
        process = start(work, *arguments)
        process.join(self.rng.uniform(0, self.span_seconds))
        return process

    def _count(self, name: str, end: int, *, met: int) -> bool:
        self.ends[end] += 1
        self.tally[name] += end == met
        assert end in (0, met)
        return end == 0

    @staticmethod
    def _end_of(process: ForkServerProcess) -> int:
        process.join(HANG_SECONDS)
        assert process.exitcode is not None, "it hangs"
        return process.exitcode

    def until_enough(self, folder: str, begin: Callable[[str], WorkT], fault: Callable[[WorkT], bool]) -> None:
        """Begin piece after piece of work, each disturbed until it is done, until so many faults came."""
        pieces = 0
        while self.tally.total() < NUM_FAULTS:
            uri = storage.join(folder, f"piece-{pieces}")
            work = begin(uri)
            assert any(fault(work) for _ in range(MOST_TRIES)), f"{uri}: what fails goes on when the fault is over"
            storage.delete_folder(uri)
            pieces += 1
        print(f"\n{pieces} pieces of work: {self}", flush=True)

    def __str__(self) -> str:
        return f"{dict(self.tally)}, ends {dict(self.ends)}"


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> str:
    return prepare_tones(tmp_path_factory.mktemp("tones"), num_clips=40, damaged=2)


def require_same(cache: str, undisturbed: dict[str, str], *, complete: bool) -> None:
    """Compare what is committed, of a complete cache all, with what an undisturbed process wrote."""
    found = digests(cache)
    committed = {Path(name).stem for name in found if name.startswith("index/")}
    if complete:
        assert found == undisturbed
        with contextlib.redirect_stdout(None):
            cache_verify(CacheVerifyConfig(cache=cache))
    for name in ("shards", "index"):
        for unit in committed:
            (file,) = (one for one in undisturbed if Path(one).stem == unit and one.startswith(f"{name}/"))
            assert found[file] == undisturbed[file], file


def fill_under(fault: Callable[[str], bool], faults: Faults, folder: str, undisturbed: dict[str, str]) -> None:
    """Fill cache after cache until so many faults came."""

    def disturb(cache: str) -> bool:
        is_done = fault(cache)
        require_same(cache, undisturbed, complete=is_done)
        return is_done

    faults.until_enough(folder, lambda cache: cache, disturb)


@pytest.fixture
def extraction(tones, tmp_path) -> tuple[Faults, dict[str, str]]:
    faults = Faults(SEED)
    faults.measure(extract_here, str(tmp_path / "undisturbed"), tones)
    undisturbed = digests(str(tmp_path / "undisturbed"))
    assert sum(name.startswith("shards/") for name in undisturbed) > 10
    return faults, undisturbed


def test_extraction_that_is_killed(extraction, tones, tmp_path):
    faults, undisturbed = extraction
    fill_under(lambda cache: faults.kill(extract_here, cache, tones), faults, str(tmp_path), undisturbed)


def test_extraction_that_is_frozen_while_another_does_its_work(extraction, tones, tmp_path):
    faults, undisturbed = extraction

    def freeze(cache: str) -> bool:
        plan_here(cache, tones)  # a cache is begun by one job, which holds it
        return faults.freeze(extract_here, cache, tones)

    fill_under(freeze, faults, str(tmp_path), undisturbed)


def test_extraction_on_a_disk_that_fills_up(extraction, tones, tmp_path):
    faults, undisturbed = extraction
    with small_disk(tmp_path / "disk", megabytes=200) as disk:

        def fill_disk(cache: str) -> bool:
            return faults.disturb(DISK, lambda: full(disk), 0.3, extract_here, cache, tones)

        fill_under(fill_disk, faults, str(disk), undisturbed)


@pytest.mark.parametrize("fault", get_args(Fault))
def test_extraction_from_and_to_an_object_store_that_fails(extraction, tmp_path, fault):
    faults, _ = extraction
    corpus = write_tone_corpus(tmp_path, num_clips=40, damaged=2)
    with s3_server("bucket") as server:
        audio_root, manifest = server.upload(corpus / "audio", "bucket/audio"), server.uri("bucket/manifest")
        prepare_table(TableConfig(table=str(corpus / "table.jsonl"), audio_root=audio_root, out=manifest))
        faults.measure(extract_here, server.uri("bucket/undisturbed"), manifest)
        undisturbed = digests(server.uri("bucket/undisturbed"))

        def disturb(cache: str) -> bool:
            failing = lambda: server.gate.failing(fault)  # noqa: E731
            return faults.disturb(f"S3: {fault}", failing, 0.5, extract_here, cache, manifest)

        fill_under(disturb, faults, server.uri("bucket"), undisturbed)
        print(f"{server.gate.met} connections met a fault")


@pytest.fixture(scope="module")
def training(tmp_path_factory) -> TrainConfig:
    """Of a run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("training")
    manifest = prepare_tones(folder, num_clips=24)
    fill(folder / "c", manifest, make_worker(folder / "c"))
    keys = {"steps": 60, "checkpoint_every": 3, "keep_checkpoints": 2, "valid_splits": ["test"], "valid_every": 20}
    config = config_of((manifest, str(folder / "c")), folder / "unbroken", **keys)
    train_here(config)
    return config


def require_same_run(run: str, unbroken: str) -> None:
    """Compare steps, examples, losses and the last weights, bit for bit."""
    kept = ("step", "examples_sha256", "loss", "valid_loss", "loss_by_task", "learning_rate")
    ours, theirs = ([{key: line.get(key) for key in kept} for line in read_metrics(one)] for one in (run, unbroken))
    assert ours == theirs and len(ours) == 60
    for name in (ALIGNER, f"{ADAPTER}/adapter_model.safetensors"):
        ours, theirs = (storage.read_bytes(storage.join(checkpoint_uri(one, 60), name)) for one in (run, unbroken))
        assert ours == theirs, name


def train_under(fault: Callable[[TrainConfig], bool], faults: Faults, folder: Path, config: TrainConfig) -> None:
    """Train run after run until so many faults came."""
    faults.measure(train_on, replace(config, run=str(folder / "measured")))

    def disturb(one: TrainConfig) -> bool:
        if is_done := fault(one):
            require_same_run(one.run, config.run)
        return is_done

    faults.until_enough(str(folder), lambda run: replace(config, run=run), disturb)


def test_training_that_is_killed(training, tmp_path):
    faults = Faults(SEED)
    train_under(lambda config: faults.kill(train_on, config), faults, tmp_path, training)


def test_training_that_is_frozen_while_another_does_its_work(training, tmp_path):
    faults = Faults(SEED)

    def freeze(config: TrainConfig) -> bool:
        open_run(config, pending=[])  # a run is begun by one job, which holds it
        return faults.freeze(train_on, config, ends=(0, STORAGE_FAILED))  # its checkpoint may have been taken away

    train_under(freeze, faults, tmp_path, training)


def test_training_on_a_disk_that_fills_up(training, tmp_path):
    faults = Faults(SEED)
    with small_disk(tmp_path / "disk", megabytes=200) as disk:
        train_under(
            lambda config: faults.disturb(DISK, lambda: full(disk), 0.3, train_on, config), faults, disk, training
        )


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory) -> EvaluateConfig:
    """Of a run that has answered nothing."""
    manifest, cache, run = prepare_questions(tmp_path_factory.mktemp("evaluation"), clips=24, each=8)
    keys = {"max_new_tokens": 24, "batch_examples": 4, "page_examples": 0}
    return EvaluateConfig(run=run, manifest=manifest, cache=cache, **keys)


def evaluation_of(run: str) -> dict[str, str | pa.Table]:
    """Return report and answers without how long they took, and the units that the answers were kept in."""
    folder = Path(evaluation_folder(run, ["test"]))
    (store,) = stores_of(run)
    tables = [folder / ANSWERS, *store.glob("[!.]*.parquet")]
    return {name: (folder / name).read_text().replace(run, "<run>") for name in ("report.md", "scores.json")} | {
        table.name: pq.read_table(table).drop_columns("seconds") for table in tables
    }


def evaluate_under(
    fault: Callable[[EvaluateConfig], bool], faults: Faults, folder: Path, config: EvaluateConfig
) -> None:
    """Evaluate copy after copy of a run until so many faults came."""

    def begin(run: str) -> EvaluateConfig:
        shutil.copytree(config.run, run)
        return replace(config, run=run)

    undisturbed = begin(str(folder / "undisturbed"))
    faults.measure(evaluate_here, undisturbed)
    expected = evaluation_of(undisturbed.run)
    assert len(expected) == 3 + 24 * 8 / 4

    def disturb(one: EvaluateConfig) -> bool:
        if is_done := fault(one):
            assert evaluation_of(one.run) == expected
        return is_done

    faults.until_enough(str(folder), begin, disturb)


def test_evaluation_that_is_killed(evaluation, tmp_path):
    faults = Faults(SEED)
    evaluate_under(lambda config: faults.kill(evaluate_here, config), faults, tmp_path, evaluation)


def test_evaluation_whose_worker_is_frozen_while_another_does_its_work(evaluation, tmp_path):
    faults = Faults(SEED)

    def freeze(config: EvaluateConfig) -> bool:
        return faults.freeze(answer_here, config) and faults.finish(evaluate_here, config)

    evaluate_under(freeze, faults, tmp_path, evaluation)


def test_evaluation_on_a_disk_that_fills_up(evaluation, tmp_path):
    faults = Faults(SEED)
    with small_disk(tmp_path / "disk", megabytes=200) as disk:
        fails = lambda: full(disk)  # noqa: E731
        evaluate_under(lambda config: faults.disturb(DISK, fails, 0.3, evaluate_here, config), faults, disk, evaluation)
