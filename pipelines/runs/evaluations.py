"""What a run's evaluations found, as far as tables of runs show it."""

from pipelines import storage
from pipelines.errors import UserError

EVALUATION = "evaluation"


def read_scores(run: str) -> dict[str, float]:
    """Return the scores in <run>/evaluation/<splits>/scores.json, each named `<test set> <task> <score>`.

    Raises:
        UserError: If a file is damaged.
    """
    scores: dict[str, float] = {}
    for splits in storage.list_folders(storage.join(run, EVALUATION)):
        uri = storage.join(run, EVALUATION, splits, "scores.json")
        if not storage.file_exists(uri):
            continue
        content = storage.read_json(uri)
        try:
            for task in (heard["own"] for heard in content["tasks"]):
                values = {score["name"]: score["value"] for score in task["scores"] if score["value"] is not None}
                scores |= {f"{task['test_set']} {task['task']} {name}": float(value) for name, value in values.items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{uri}: damaged, not an evaluation's scores ({error!r})") from None
    return scores
