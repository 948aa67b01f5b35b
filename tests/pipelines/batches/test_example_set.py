"""Examples that are many enough for a snapshot."""

import hashlib
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import storage
from pipelines.batches import example_set
from pipelines.batches.example_set import load_examples
from pipelines.batches.mix import MixRow
from pipelines.cache import clip_table
from pipelines.cache.clip_index import ClipIndex
from pipelines.cli import main
from pipelines.errors import UserError
from pipelines.inference.questions import load_questions
from pipelines.manifest.tables import require_named
from pipelines.training.preflight import check_run
from tests.pipelines.builders import config_of, fill, losses, make_worker, prepare_tones, train_here, valid_losses


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> tuple[str, str]:
    """A manifest of 12 clips, of which two are damaged, and its cache."""
    folder = tmp_path_factory.mktemp("damaged")
    manifest = prepare_tones(folder, num_clips=12, damaged=2)
    fill(folder / "c", manifest, make_worker(folder / "c"))
    return manifest, str(folder / "c")


@pytest.fixture
def large(monkeypatch, tmp_path):
    """Let every index and every manifest count as large."""
    monkeypatch.setenv("SALMONN_SNAPSHOTS", str(tmp_path / "snapshots"))
    monkeypatch.setattr(clip_table, "SMALL_NBYTES", -1)
    monkeypatch.setattr(example_set, "SMALL_NBYTES", -1)
    return tmp_path / "snapshots"


def load(manifest: str, cache: str, **keys):
    selection = {"splits": (), "tasks": (), "max_missing_fraction": 0.5}
    return load_examples(manifest, ClipIndex(cache), **(selection | keys))


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"splits": ["train"]},
        {"splits": ["train"], "more_columns": ("corpus", "split")},
        {"mix": (MixRow(task="audiocaption", weight=0.5), MixRow(task="asr")), "shard_window": 2},
    ],
)
def test_a_snapshot_gives_the_examples_that_reading_gives(damaged, keys, tmp_path, monkeypatch):
    keys = {**keys, "tasks": []}
    read = load(*damaged, **keys)
    monkeypatch.setenv("SALMONN_SNAPSHOTS", str(tmp_path / "snapshots"))
    monkeypatch.setattr(clip_table, "SMALL_NBYTES", -1)
    monkeypatch.setattr(example_set, "SMALL_NBYTES", -1)
    for _ in range(2):
        mapped = load(*damaged, **keys)
        assert mapped.table.equals(read.table) and mapped.missing.equals(read.missing)
        assert mapped.positions.tolist() == read.positions.tolist()
        assert mapped.digest == read.digest and mapped.rows([1, 0]) == read.rows([1, 0])
        if read.mixture:
            assert mapped.mixture.draw(0, 1).tolist() == read.mixture.draw(0, 1).tolist()
            assert mapped.shards.numbers.tolist() == read.shards.numbers.tolist()
    assert len(list((tmp_path / "snapshots").glob("examples-*.arrow"))) == 1
    assert read.missing.num_rows > 0


def test_the_digest_is_of_the_ids_one_after_the_other(damaged):
    examples = load(*damaged)
    ids = "".join(examples.table["example_id"].to_pylist())
    assert examples.digest == hashlib.sha256(ids.encode()).hexdigest()


def test_a_manifest_or_a_cache_that_changes_is_read_again(damaged, large, tmp_path):
    manifest, cache = str(tmp_path / "m"), str(tmp_path / "c")
    shutil.copytree(damaged[0], manifest)
    shutil.copytree(damaged[1], cache)
    before = load(manifest, cache)
    table = pq.read_table(f"{manifest}/examples.parquet")
    answers = pa.array([f"another answer {row}" for row in range(len(table))])
    storage.write_table(
        f"{manifest}/examples.parquet", table.set_column(table.schema.names.index("answer"), "answer", answers)
    )
    changed = load(manifest, cache)
    assert "another answer" in changed.rows([0])[0]["answer"] and changed.digest == before.digest
    (tmp_path / "c" / "index" / "000000.parquet").unlink()
    fewer = load(manifest, cache, max_missing_fraction=0.9)
    assert len(fewer) < len(changed) and fewer.missing.num_rows > changed.missing.num_rows


def test_a_run_on_snapshots_has_the_losses_of_one_without(corpus, unbroken, large, tmp_path):
    train_here(config_of(corpus, tmp_path / "run", valid_splits=["test"], valid_every=2))
    assert losses(tmp_path / "run") == losses(unbroken)
    assert valid_losses(tmp_path / "run") == valid_losses(unbroken)
    assert len(list(large.glob("*.arrow"))) == 3  # the index, and the examples of two selections


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"splits": ["train", "tset"]}, "no example has split tset; splits found: test, train"),
        ({"tasks": ["audiocaption", "audiocaptoin"]}, "no example has task audiocaptoin; tasks found: audiocaption"),
    ],
)
def test_one_of_several_names_that_no_example_has_is_named(damaged, tmp_path, keys, told, capsys):
    manifest, cache = damaged
    with pytest.raises(UserError, match=f"{told}$"):
        check_run(config_of(damaged, tmp_path / "run", max_missing_fraction=0.5, **keys))
    with pytest.raises(UserError, match=f"{told}$"):
        load_questions(manifest, ClipIndex(cache), **{"splits": [], "tasks": [], "max_missing_fraction": 0.5} | keys)
    words = [f"{key}=[{','.join(names)}]" for key, names in keys.items()]
    assert main(["cache", "export", f"cache={cache}", f"out={tmp_path}/e", f"manifest={manifest}", *words]) == 2
    assert told in capsys.readouterr().err


def test_one_of_several_held_out_splits_that_no_example_has_is_named(damaged, tmp_path):
    keys = {"splits": ["train"], "valid_splits": ["test", "tset"], "valid_every": 1, "max_missing_fraction": 0.5}
    with pytest.raises(UserError, match=r"no example has split tset; splits found: test, train$"):
        check_run(config_of(damaged, tmp_path / "run", **keys))


def test_a_task_of_ours_need_not_be_there_nor_a_single_name_be_looked_for(damaged):
    require_named(damaged[0], ["train", "test"], ["asr", "audiocaption"])
    require_named(damaged[0], ["asr"], ["mine"])
    with pytest.raises(UserError, match="no example has split asr"):  # a task's name is no split's
        require_named(damaged[0], ["asr", "train"], [])
