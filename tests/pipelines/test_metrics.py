"""What jobs publish, told by a stand-in for Ray; test_monitoring.py of the operations has what Prometheus gets."""

import math

import pytest

from cluster.metrics import Counter, Gauge
from pipelines import metrics

Told = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """Amounts of counters and values of gauges by name and labels."""
    found: Told = {}

    def key(metric: Counter | Gauge, labels: dict[str, str]) -> tuple[str, tuple[tuple[str, str], ...]]:
        assert set(labels) == set(metric.labels), metric.name
        return metric.name, tuple(sorted(labels.items()))

    def add(metric: Counter, amount: float, **labels: str) -> None:
        found[key(metric, labels)] = found.get(key(metric, labels), 0) + amount

    def put(metric: Gauge, value: float, **labels: str) -> None:
        found[key(metric, labels)] = value

    monkeypatch.setattr(Counter, "add", add)
    monkeypatch.setattr(Gauge, "set", put)
    return found


def line_of(step: int, **more: object) -> dict[str, object]:
    numbers = {"loss": 2.0, "loss_by_task": {"asr": 1.0, "qa": 3.0}, "skipped_steps": 1}
    return {"step": step, **numbers, "examples_per_second": 8.0, "data_wait_fraction": 0.1, **more}


def test_what_a_shard_held_is_counted_under_its_cache_without_the_uris_options(told: Told) -> None:
    for _ in range(2):
        metrics.unit_extracted(
            "s3://b/c?region=x",
            node="n",
            clips=3,
            audio_seconds=30.0,
            nbytes=100,
            parts={"write": 0.5},
            rejects={"open": 1},
        )
    cache = ("cache", "s3://b/c")
    assert told["salmonn_extract_clips", (cache, ("node", "n"))] == 6
    assert told["salmonn_extract_part_seconds", (cache, ("part", "write"))] == 1.0
    assert told["salmonn_extract_rejects", (cache, ("reason", "open"))] == 2


def test_a_run_stands_at_its_newest_line_and_counts_what_all_lines_tell(told: Told) -> None:
    stands, run = metrics.RunStands("/r", 10), ("run", "/r")
    stands.tell()
    assert told["salmonn_train_step", (run,)] == 0 and told["salmonn_train_planned_steps", (run,)] == 10
    assert told["salmonn_train_alarms", (("alarm", "plateau"), run)] == 0
    assert ("salmonn_train_loss", (run,)) not in told
    stands.take([line_of(5, valid_loss=1.5, alarms=["plateau: no fall", "data wait: 30 %"]), line_of(6)])
    stands.tell()
    assert told["salmonn_train_step", (run,)] == 6 and not stands.is_complete
    assert told["salmonn_train_skipped_steps", (run,)] == 2 and told["salmonn_train_valid_loss", (run,)] == 1.5
    assert told["salmonn_train_alarms", (("alarm", "plateau"), run)] == 1
    assert told["salmonn_train_task_loss", (run, ("task", "qa"))] == 3.0
    stands.take([line_of(10)])
    assert stands.is_complete


def test_a_run_that_went_back_to_a_checkpoint_counts_anew(told: Told) -> None:
    stands = metrics.RunStands("/r", 10)
    stands.take([line_of(5, alarms=["spike: x"]), line_of(6, alarms=["plateau: y"])])
    stands.take([line_of(5, alarms=["spike: x"]), line_of(6)])
    stands.tell()
    assert told["salmonn_train_skipped_steps", (("run", "/r"),)] == 2
    alarms = {name: told["salmonn_train_alarms", (("alarm", name), ("run", "/r"))] for name in ("spike", "plateau")}
    assert alarms == {"spike": 1, "plateau": 0}


def test_numbers_that_are_not_finite_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gauge, "_in_ray", lambda *_: pytest.fail("was told"))
    metrics.TRAIN_LOSS.set(math.nan, run="/r")


def test_names_are_told_apart_and_say_what_they_mean() -> None:
    assert len({metric.name for metric in metrics.METRICS}) == len(metrics.METRICS) > 15
    assert all(metric.name.startswith("salmonn_") and metric.meaning and metric.labels for metric in metrics.METRICS)
