"""Prometheus scrapes a real Ray while jobs run, and each query of the dashboard answers.

Covers cluster.metrics.
"""

import json
import math
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.deploy.dashboard import PANELS
from cluster.metrics import Counter, Gauge
from pipelines.cli import main
from tests import ROOT
from tests.pipelines.builders import prepare_tones
from tests.pipelines.operations.builders import Salmonn
from tests.ray_head import RayHead, free_ports

WITHOUT_DATA = {"GPUs"}
"""Panels that have nothing to show on a machine without."""
PAGE_SECONDS = 30.0
"""Longest time from a number's change until it is on Ray's page: Ray sends every ten seconds."""


class Prometheus:
    """A server's answers."""

    def __init__(self, port: int) -> None:
        self._url, self.since = f"http://127.0.0.1:{port}/api/v1", time.time()

    def ask(self, query: str) -> list[dict[str, Any]]:
        """Return the series of a query since the server's start."""
        times = {"start": self.since, "end": time.time(), "step": 1}
        words = urllib.parse.urlencode({"query": query, **times})
        with urllib.request.urlopen(f"{self._url}/query_range?{words}", timeout=30) as reply:
            found: list[dict[str, Any]] = json.loads(reply.read())["data"]["result"]
        return found

    def last(self, query: str) -> float:
        """Return the newest value of a query of one series."""
        (series,) = self.ask(query)
        return float(series["values"][-1][1])


@contextmanager
def prometheus(folder: Path) -> Iterator[Prometheus]:
    """Run Prometheus with the config in a folder, on this machine alone."""
    (port,) = free_ports(1)
    words = ["--config.file=prometheus.yaml", "--storage.tsdb.path=data", f"--web.listen-address=127.0.0.1:{port}"]
    process = subprocess.Popen(["prometheus", *words, "--log.level=error"], cwd=folder)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                assert time.monotonic() < deadline and process.poll() is None, "prometheus did not start"
                time.sleep(0.2)
        yield Prometheus(port)
    finally:
        process.terminate()
        process.wait()


@pytest.mark.ray
@pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus, of Debian's package of that name")
def test_each_query_of_the_dashboard_answers_while_jobs_run(job_head: RayHead, tmp_path: Path) -> None:
    discovery = job_head.token_path.parent / "tmp" / "prom_metrics_service_discovery.json"
    assert main(["deploy", "monitoring", f"out={tmp_path}/mon", f"discovery={discovery}"]) == 0
    config = tmp_path / "mon" / "prometheus.yaml"
    config.write_text(re.sub(r"(scrape_interval|refresh_interval): \d+s", r"\1: 5s", config.read_text()))
    manifest, salmonn = prepare_tones(tmp_path, num_clips=24, damaged=1), Salmonn(job_head)
    data = [f"manifest={manifest}", f"cache={tmp_path}/c", f"ray.address={job_head.address}"]
    run, small = f"run={tmp_path}/r", ["llm=tiny", "steps=6", "log_every=1", "valid_splits=[test]", "valid_every=3"]
    missing = "max_missing_fraction=0.5"  # one test clip of six is damaged
    jobs = [
        ["extract", *data, "whisper=tiny", "beats=tiny", "workers=2", "shard_megabytes=1"],
        ["train", "tiny", *data, run, missing, *small],
        ["evaluate", *data, run, missing, "num_beams=1", "max_new_tokens=4", "workers=1", "page_examples=0"],
    ]
    with prometheus(config.parent) as server:
        for words in jobs:
            code, said = salmonn.call(*words)
            assert code == 0, said
        cache = f'{{cache="{tmp_path}/c"}}'
        clips = f"sum(ray_salmonn_extract_clips_total{cache})"
        pending = f'ray_salmonn_answer_pending{{run="{tmp_path}/r"}}'
        deadline = time.monotonic() + PAGE_SECONDS
        while not server.ask(pending) or server.last(pending) > 0:  # what the driver said last comes after its end
            assert time.monotonic() < deadline, "the end of the answers is not on Ray's page"
            time.sleep(1)
        assert server.last(clips) == 23
        assert server.last(f"sum(ray_salmonn_extract_rejects_total{cache})") == 1
        shards = len(list((tmp_path / "c" / "shards").glob("*.tar")))
        ends = {state: server.last(_state(cache, state)) for state in ("queued", "running", "done", "failed")}
        assert ends == {"queued": 0, "running": 0, "done": shards, "failed": 0}
        assert server.last(f'ray_salmonn_train_step{{run="{tmp_path}/r"}}') == 6
        assert server.ask("ray_salmonn_answers_total")
        deadline = time.monotonic() + PAGE_SECONDS
        while silent := _silent_panels(server):  # a rate needs two looks at the page
            assert time.monotonic() < deadline, silent
            time.sleep(1)


def _silent_panels(server: Prometheus) -> list[str]:
    return [
        f"{panel.title}: {query}"
        for panels in PANELS.values()
        for panel in panels
        for query in panel.queries.values()
        if panel.title not in WITHOUT_DATA
        and not _has_numbers(server.ask(query.replace("$cache", ".*").replace("$run", ".*")))
    ]


def _state(cache: str, state: str) -> str:
    return f'ray_salmonn_extract_units{cache[:-1]}, state="{state}"}}'


def _has_numbers(series: list[dict[str, Any]]) -> bool:
    return any(math.isfinite(float(value)) for one in series for _, value in one["values"])


WITHOUT_RAY = """
import sys
from pipelines import metrics
metrics.EXTRACT_CLIPS.add(3, cache="c", node="n")
metrics.TRAIN_LOSS.set(3.0, run="r")
assert "ray" not in sys.modules
import ray
metrics.TRAIN_LOSS.set(3.0, run="r")
assert not ray.is_initialized()
"""


def test_without_a_cluster_nothing_is_published_and_ray_is_not_imported() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_RAY], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_label_that_a_metric_does_not_have_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="Missing value for tag key"):
        Counter("salmonn_test_counter", "a test", ("cache",)).add(1, run="r")
    Counter("salmonn_test_counter", "a test", ("cache",)).add(0, cache="c")
    Gauge("salmonn_test_gauge", "a test", ("cache",)).set(1, cache="c")
