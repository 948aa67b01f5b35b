import pytest

from pipelines.inference.evaluate import Prediction, score_tasks
from pipelines.inference.scoring.scores import exact_match, word_accuracy, word_error_rate


def test_scores():
    assert word_error_rate(["a b c", "d"], ["a x c", "d e"]) == pytest.approx(2 / 4)
    assert word_accuracy(["a b c", "d"], ["a x c", "d e"]) == pytest.approx(3 / 4)
    assert exact_match(["A dog.", "rain"], ["a dog", "wind"]) == 0.5
    predictions = [Prediction("1", "c", "asr", "?", "red boat", "red"), Prediction("2", "c", "aqa", "?", "x", "x")]
    found = {task.task: task.metrics for task in score_tasks(predictions)}
    assert found == {"aqa": {"accuracy": 1.0}, "asr": {"wer": 0.5, "word_accuracy": 0.5}}
