"""`salmonn tasks`: the tasks, what is asked, how answers are scored, and what one looks like."""

from rich.table import Table

from llm.prompts import PROMPTS
from pipelines.inference.scoring.config import TasksConfig
from pipelines.inference.scoring.tasks import TASKS
from pipelines.interface.terminal import print_table


def list_tasks(config: TasksConfig) -> None:
    """Print the task table; the question is the one that evaluation asks, the first score is the paper's."""
    table = Table("level", "task", "question", "scores", "example reference", box=None, pad_edge=False)
    for name, task in TASKS.items():
        if config.level in (0, task.level):
            question = PROMPTS[name][0].replace("{question}", "(each example's own)")
            table.add_row(str(task.level), name, question, ", ".join(task.scores), task.example)
    print_table(table)
