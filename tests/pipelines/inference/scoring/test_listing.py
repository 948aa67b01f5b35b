"""Covers pipelines.inference.scoring.listing, pipelines.inference.scoring.config."""

import pytest

from pipelines.cli import main
from pipelines.inference.scoring.tasks import TASKS


def listed(out):
    return [line.split()[1] for line in out.splitlines()[1:] if line[0].isdigit()]


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_tasks_are_listed_by_level(level, capsys):
    assert main(["tasks", f"level={level}"]) == 0
    assert listed(capsys.readouterr().out) == [name for name, task in TASKS.items() if level in (0, task.level)]


def test_a_task_is_listed_with_its_question_scores_and_an_example(capsys):
    assert main(["tasks", "level=2"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Translate the spoken English into German. bleu4 Der Hund schläft hier." in out
    assert "(each example's own)" in out


def test_levels_that_there_are_not_are_refused(capsys):
    assert main(["tasks", "level=4"]) == 2
    assert "level=4" in capsys.readouterr().err
