"""What docs/security.md says: its tests are there, and those that belong to no other file.

Covers pipelines.cache.layout.
"""

import ast
import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.batches.mix import load_mix
from pipelines.cache.encoder_recipe import recorded_beats
from pipelines.cache.reader import FeatureCache
from pipelines.cli import main
from pipelines.errors import UserError
from tests import ROOT
from tests.pipelines.builders import fill, make_worker, prepare_tones

TEXT = (ROOT / "docs" / "security.md").read_text()
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_every_test_that_is_named_is_there(path, name):
    tree = ast.parse((ROOT / path).read_text())
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_claim_of_a_defence_names_a_test():
    rows = [row for row in re.findall(r"^\|.*\|$", TEXT, re.MULTILINE) if not re.match(r"\| *(-|what)", row)]
    assert len(rows) > 10 and all(re.search(r"`tests/[\w/]+\.py::\w+`", row) for row in rows)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    fill(folder / "cache", prepare_tones(folder, num_clips=2), make_worker(folder / "cache"))
    return folder


@pytest.mark.parametrize("folder", ["index", "units", "rejects"])
@pytest.mark.parametrize("name", ["x", "-1", "٣", "1", "0" * 20, "000000 "])
def test_files_that_no_unit_would_be_named_after_are_a_line(whole, tmp_path, folder, name, capsys):
    cache = shutil.copytree(whole / "cache", tmp_path / "cache")
    (cache / folder).mkdir(exist_ok=True)
    shutil.copy(cache / "index" / "000000.parquet", cache / folder / f"{name}.parquet")
    for verb, codes in (("info", [2]), ("verify", [1, 2])):  # to verify, it is a fault like others
        assert main(["cache", verb, f"cache={cache}"]) in codes
        shown = capsys.readouterr()
        assert f"{folder}/{name}.parquet: not named as this project names" in shown.out + shown.err


def test_a_shard_outside_the_cache_is_not_read(whole, tmp_path):
    cache = shutil.copytree(whole / "cache", tmp_path / "cache")
    (cache / "shards" / "000000.tar").rename(tmp_path / "outside.tar")
    path = cache / "index" / "000000.parquet"
    table = pq.read_table(path)
    outside = pa.array(["../../outside.tar"] * len(table))
    pq.write_table(table.set_column(table.schema.get_field_index("shard"), "shard", outside), path)
    with pytest.raises(UserError, match=r"outside\.tar'; it must be named as its index"):
        FeatureCache(str(cache))


def test_an_encoder_that_a_folder_records_is_no_code_that_runs():
    assert recorded_beats({"audio": "/models/beats.pt"}, of="run") == "/models/beats.pt"
    with pytest.raises(UserError, match="run: names os:abort as its encoder, which is code to be run"):
        recorded_beats({"audio": "os:abort"}, of="run")


def test_a_mix_makes_no_objects(tmp_path):
    (tmp_path / "mix.yaml").write_text(f"- !!python/object/apply:os.mkdir [{tmp_path}/made]\n")
    with pytest.raises(UserError, match=r"mix\.yaml"):
        load_mix(str(tmp_path / "mix.yaml"))
    assert not (tmp_path / "made").exists()


def test_a_start_that_leads_elsewhere_is_only_a_name(tmp_path):
    """What a run in the same folder says of its start keeps checkpoints and never removes any."""
    run = tmp_path / "runs" / "a"
    for step in (1, 2):
        folder = run / "checkpoints" / f"{step:06d}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(json.dumps({"step": step}))
    (run / "config.yaml").write_text("steps: 2\n")
    outside = tmp_path / "outside"
    outside.mkdir()
    (run.parent / "b").mkdir()
    (run.parent / "b" / "start.json").write_text(json.dumps({"init_from": str(outside), "step": 1}))
    (run / "checkpoints" / "..x").mkdir()
    assert main(["runs", "prune", f"run={run}"]) == 0
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["..x", "000002"] and outside.is_dir()
