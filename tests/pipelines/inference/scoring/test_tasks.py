import re

from llm.prompts import PROMPTS
from pipelines.inference.scoring.tasks import TASKS
from tests import ROOT


def test_every_task_has_a_row_and_prompts():
    assert set(TASKS) == set(PROMPTS)
    assert [sum(task.level == level for task in TASKS.values()) for level in (1, 2, 3)] == [12, 5, 2]


def test_every_score_of_every_task_is_explained():
    page = (ROOT / "docs" / "scores.md").read_text()
    rows = [
        line.split(" | ")[:2] for line in page.splitlines() if line.startswith("| `") or line.startswith("| the same")
    ]
    explained, tasks = set(), []
    for first, second in rows:
        tasks = re.findall(r"`(\w+)`", first) or tasks
        explained |= {(task, score) for task in tasks for score in re.findall(r"`(\w+)`", second)}
    shared = {name for name in TASKS if "following_rate" in TASKS[name].scores}
    explained |= {(task, "following_rate") for task in shared}
    assert {(name, score) for name, task in TASKS.items() for score in task.scores} <= explained
    assert "| all of these | `following_rate` |" in page
