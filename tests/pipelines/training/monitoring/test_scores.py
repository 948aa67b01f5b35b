"""Covers pipelines.inference.studies.checkpoint_scores, pipelines.runs.scores."""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import UserError
from pipelines.inference.questions import Questions
from pipelines.inference.studies.checkpoint_scores import Due, sample_questions
from pipelines.runs.folder import STATE
from pipelines.runs.scores import ScoreLine, add_scores, read_scores
from pipelines.training.config import TrainConfig
from pipelines.training.monitoring import scores
from pipelines.training.monitoring.scores import scored
from pipelines.training.train import train
from tests.pipelines.builders import config_of, losses, train_here


@pytest.fixture
def questions(corpus, tmp_path) -> tuple[str, str]:
    """Give the corpus questions whose scores cost nothing; the examples keep their ids, and so their order."""
    (tmp_path / "m").mkdir()
    for name in ("clips.parquet", "examples.parquet"):
        table = pq.read_table(f"{corpus[0]}/{name}")
        for column, value in {"task": "aqa", "question": "High or low?"}.items() if name.startswith("ex") else ():
            filled = pa.array([value] * table.num_rows, pa.string())
            table = table.set_column(table.column_names.index(column), column, filled)
        pq.write_table(table, tmp_path / "m" / name)
    return str(tmp_path / "m"), corpus[1]


@pytest.fixture
def scoring(questions, tmp_path) -> TrainConfig:
    return config_of(questions, tmp_path / "run", valid_splits=["test"], eval_every=2, max_answer_tokens=5)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_run_is_scored_beside_its_steps_which_stay_the_same_bits(scoring, tmp_path, capsys):
    without = dataclasses.replace(scoring, run=str(tmp_path / "without"), eval_every=0)
    train_here(without)
    train(scoring)
    assert losses(scoring.run) == losses(without.run)
    lines = read_scores(scoring.run)
    assert {line.step for line in lines} <= {2, 4, 6} and lines[-1].step == 6
    assert [line.step for line in lines] == sorted(line.step for line in lines)
    assert {(line.task, line.test_set, line.score) for line in lines} == {("aqa", "table test", "accuracy")}
    assert all(0 <= line.value <= 1 for line in lines)
    assert "What its answers scored" in (Path(scoring.run) / "report.html").read_text()
    assert "could not be scored" not in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_only_the_newest_checkpoint_is_scored_where_there_was_no_room_before(scoring):
    train_here(scoring)
    with scored([scoring]):
        pass
    assert {line.step for line in read_scores(scoring.run)} == {6}
    with scored([scoring]):  # nothing is scored twice
        pass
    assert len(read_scores(scoring.run)) == 1


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_scoring_that_fails_is_told_once_and_ends_nothing(scoring, monkeypatch, capsys):
    def fail(*arguments):
        raise OSError("the disk is gone")

    monkeypatch.setattr(scores, "score_newest", fail)
    other = dataclasses.replace(scoring, run=f"{scoring.run}-2")
    train_here(scoring)
    train_here(other)
    with scored([scoring, other]):
        pass
    error = capsys.readouterr().err
    assert error.count("could not be scored, and training goes on: OSError: the disk is gone") == 1
    assert read_scores(scoring.run) == []


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_training_that_fails_waits_for_no_scores(scoring, capsys):
    train_here(scoring)
    crowded = dataclasses.replace(scoring, threads=99)
    with pytest.raises(RuntimeError, match="out of power"), scored([crowded]):
        raise RuntimeError("out of power")
    assert "could not" not in capsys.readouterr().err and read_scores(scoring.run) == []


def test_checkpoints_are_due_at_multiples_and_at_the_last_step(tmp_path):
    due = Due(every=4, last_step=10)
    newest = []
    for step in (2, 4, 6, 8, 9, 10):
        folder = tmp_path / "checkpoints" / f"{step:06d}"
        folder.mkdir(parents=True)
        (folder / STATE).write_text("{}")
        newest.append(due.newest(str(tmp_path)))
    assert newest == [0, 4, 4, 8, 8, 10]


def test_a_sample_holds_the_same_questions_of_each_test_set_at_every_call():
    rows = [
        {"clip_id": str(number), "task": "asr" if number % 3 else "aqa", "corpus": "c", "split": "dev"}
        for number in range(30)
    ]
    asked = Questions(pa.Table.from_pylist(rows), 30, 0)
    found = sample_questions(asked, 8).table
    assert sorted(found["task"].to_pylist()) == ["aqa"] * 8 + ["asr"] * 8
    places = [int(clip) for clip in found["clip_id"].to_pylist()]
    assert places == sorted(places) and places != list(range(16))
    assert found == sample_questions(asked, 8).table
    assert sample_questions(asked, 99).table.num_rows == 30


def test_scores_are_added_and_a_damaged_file_is_named(tmp_path):
    lines = [ScoreLine(step, "asr", "c dev", "wer", 0.5) for step in (2, 4)]
    assert read_scores(str(tmp_path)) == []
    for line in lines:
        add_scores(str(tmp_path), [line])
    assert read_scores(str(tmp_path)) == lines
    (tmp_path / "scores.jsonl").write_text('{"step": 2}\n')
    with pytest.raises(UserError, match=r"scores\.jsonl: damaged"):
        read_scores(str(tmp_path))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"eval_every": 4}, "eval_every=4: valid_splits names no split"),
        ({"eval_every": 3, "valid_splits": ["test"]}, "multiple of checkpoint_every=2"),
        ({"eval_every": 2, "valid_splits": ["train"]}, "are learnt, not held out"),
        ({"eval_every": -2, "valid_splits": ["test"]}, "eval_every=-2: must be 0 or more"),
    ],
)
def test_runs_that_cannot_be_scored_are_refused(corpus, tmp_path, keys, message):
    with pytest.raises(UserError, match=message):
        config_of(corpus, tmp_path, **keys)
