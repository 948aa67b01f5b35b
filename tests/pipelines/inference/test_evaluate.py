"""Covers pipelines.interface.devices."""

import json

from pipelines.inference.config import EvaluateConfig
from pipelines.inference.evaluate import evaluate
from pipelines.inference.scoring.scores import normalise


def test_evaluation_writes_predictions_and_metrics(corpus, unbroken, tmp_path):
    config = EvaluateConfig(
        run=str(unbroken), manifest=corpus[0], cache=corpus[1], out=str(tmp_path), num_beams=2, max_new_tokens=5
    )
    scores = evaluate(config)
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 3 and {line["reference"] for line in lines} == {"high"}
    right = sum(normalise(line["answer"]) == line["reference"] for line in lines) / 3
    assert scores[0].metrics["accuracy"] == right
    assert json.loads((tmp_path / "metrics.json").read_text())["step"] == 6
