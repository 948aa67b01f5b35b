import json
import math

from pipelines.runs.metrics import MetricsTail, read_metrics
from pipelines.training.config import TrainConfig
from pipelines.training.monitoring.metrics_log import MetricsLog
from tests.pipelines.builders import metrics_line
from tests.s3_server import s3_server


def config_of(run: str) -> TrainConfig:
    return TrainConfig(manifest="m", cache="c", run=run, llm="tiny")


def line_of(step: int, loss: float = 1.0) -> dict:
    return metrics_line(step, loss=loss, loss_by_task={"asr": loss})


def steps(lines: list[dict]) -> list[int]:
    return [line["step"] for line in lines]


def test_lines_are_read_as_they_come_and_anew_where_the_run_went_back(tmp_path):
    run = str(tmp_path)
    tail = MetricsTail(run)
    assert tail.read() == []
    log = MetricsLog(config_of(run), ["asr"], first_step=0)
    assert tail.read() == []
    for step in (1, 2):
        log.append(line_of(step))
    assert steps(tail.read()) == [1, 2] and tail.read() == []
    with (tmp_path / "metrics.jsonl").open("a") as file:
        line = json.dumps(line_of(3))
        file.write(line[:13])
        file.flush()
        assert tail.read() == [] and steps(read_metrics(run)) == [1, 2]
        file.write(f"{line[13:]}\n")
    assert steps(tail.read()) == [3]
    log.close()
    log = MetricsLog(config_of(run), ["asr"], first_step=1)
    log.append(line_of(2, loss=1.23456))
    assert steps(tail.read()) == steps(read_metrics(run)) == [1, 2]
    log.close()


def test_numbers_that_are_not_finite_come_back(tmp_path):
    log = MetricsLog(config_of(str(tmp_path)), ["asr"], first_step=0)
    log.append(line_of(1, math.nan))
    log.close()
    (line,) = read_metrics(str(tmp_path))
    assert math.isnan(line["loss"]) and math.isnan(line["loss_by_task"]["asr"])


def test_object_store_gets_all_lines_now_and_then_before_a_checkpoint_and_at_the_end(monkeypatch):
    with s3_server("bucket") as server:
        run = server.uri("bucket/run")
        log, tail = MetricsLog(config_of(run), ["asr"], first_step=0), MetricsTail(run)
        log.append(line_of(1))
        assert tail.read() == []
        log.flush()
        assert steps(tail.read()) == [1] and tail.read() == []
        log.append(line_of(2))
        assert tail.read() == []
        monkeypatch.setattr("pipelines.storage.lines.UPLOAD_SECONDS", 0.0)
        log.append(line_of(3))
        assert steps(tail.read()) == [2, 3]
        monkeypatch.undo()
        log.append(line_of(4))
        log.close()
        assert steps(tail.read()) == [4]
        log = MetricsLog(config_of(run), ["asr"], first_step=2)
        assert steps(tail.read()) == steps(read_metrics(run)) == [1, 2]
        log.close()
