"""Covers pipelines.inference.studies.scaling, pipelines.inference.studies.scaling_report,
pipelines.inference.studies.config, pipelines.inference.held_out, pipelines.interface.panels.
"""

import hashlib
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from pipelines.cli import main
from pipelines.errors import UserError
from pipelines.inference import answering
from pipelines.inference.answers import AnswerStore
from pipelines.inference.studies.config import ScalingConfig
from pipelines.inference.studies.scaling import scaling
from tests.pipelines.builders import stores_of

SHORT = ["num_beams=1", "max_new_tokens=5"]


@pytest.fixture
def words(unbroken, corpus, tmp_path) -> list[str]:
    """Name a run of the test's own, for answers are kept in it, and questions whose scores cost nothing."""
    run = shutil.copytree(unbroken, tmp_path / "run").as_posix()
    manifest = shutil.copytree(corpus[0], tmp_path / "m")
    table = pq.read_table(manifest / "examples.parquet")
    for name, value in {"task": "aqa", "question": "Is it high or low?"}.items():
        column = pa.array([value] * table.num_rows, pa.string())
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, manifest / "examples.parquet")
    return [f"run={run}", f"manifest={manifest}", f"cache={corpus[1]}", *SHORT]


def kept(words: list[str]) -> dict[float, dict[str, str]]:
    """Return lora_scaling -> clip -> answer of all answers that a run keeps."""
    stores = stores_of(words[0].removeprefix("run="))
    return {
        json.loads((store / "setup.json").read_text())["decode"]["lora_scaling"]: {
            row["clip_id"]: row["answer"] for row in AnswerStore(store.as_posix()).read().to_pylist()
        }
        for store in stores
    }


def make_loud(words: list[str]) -> None:
    """Let LoRA say something of its own: an adapter so short trained changes no token."""
    (path,) = Path(words[0].removeprefix("run=")).glob("checkpoints/000006/adapter/adapter_model.safetensors")
    weights = load_file(path)
    save_file({name: tensor + 0.3 * (tensor == 0) for name, tensor in weights.items()}, path)
    state = path.parents[1] / "state.json"
    content = json.loads(state.read_text())
    content["sha256"]["adapter/adapter_model.safetensors"] = hashlib.sha256(path.read_bytes()).hexdigest()
    state.write_text(json.dumps(content))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_scalings_are_the_papers_and_share_answers_with_evaluate(words, capsys, monkeypatch):
    make_loud(words)
    assert main(["scaling", *words, "scalings=[0,4,2]"]) == 0
    answers = kept(words)
    assert answers.keys() == {0.0, 1.0, 0.5}
    assert answers[0.0] != answers[1.0]
    folder = Path(words[0].removeprefix("run=")) / "scaling" / "test"
    report = json.loads((folder / "scaling.json").read_text())
    assert (report["scalings"], report["factors"], report["own_scaling"]) == ([0, 4, 2], [0, 1, 0.5], 4)
    ((*points,),) = report["test_sets"]
    assert [point["scores"]["examples"] for point in points] == [3, 3, 3]
    assert [point["empty_fraction"] for point in points] == [
        sum(not answer for answer in answers[factor].values()) / 3 for factor in (0.0, 1.0, 0.5)
    ]
    assert "data:image/png" in (folder / "scaling.html").read_text()
    assert "tokens per answer" in capsys.readouterr().out

    monkeypatch.setattr(answering, "run_units", lambda *_, **__: pytest.fail("answered again"))
    run = words[0].removeprefix("run=")
    assert main(["evaluate", *words, "lora_scaling=0.5"]) == 0
    scores = json.loads((Path(run) / "evaluation" / "test" / "scores.json").read_text())
    assert scores["tasks"][0]["own"] == points[2]["scores"]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_study_goes_on_with_the_scaling_that_is_not_answered(words, monkeypatch):
    assert main(["scaling", *words, "scalings=[1,3]"]) == 0
    given = []
    give_out = answering.run_units
    monkeypatch.setattr(
        answering, "run_units", lambda units, **keys: give_out(iter(given.extend(units) or given), **keys)
    )
    assert main(["scaling", *words, "scalings=[1,2,3]"]) == 0
    assert {unit.setting for unit in given} == {1}
    assert sum(len(unit.clip_ids) for unit in given) == 3


@pytest.mark.parametrize("scalings", [[], [1.0, 1.0], [-1.0], [float("nan")]])
def test_scalings_that_are_none_are_refused(scalings):
    with pytest.raises(UserError, match=r"scalings="):
        ScalingConfig(run="r", manifest="m", cache="c", scalings=scalings)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_every_test_set_has_every_scaling(words, corpus):
    run, manifest, cache = (word.split("=")[1] for word in words[:3])
    config = ScalingConfig(
        run=run, manifest=manifest, cache=cache, splits=[], scalings=[2.0], num_beams=1, max_new_tokens=3
    )
    report = scaling(config)
    splits = pq.read_table(f"{corpus[0]}/examples.parquet")["split"].to_pylist()
    found = {points[0].scores.test_set: points[0].scores.examples for points in report.test_sets}
    assert found == {f"table {split}": splits.count(split) for split in sorted(set(splits))}
    assert (Path(run) / "scaling" / "all" / "scaling.yaml").exists()
