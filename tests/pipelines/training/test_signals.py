"""An interrupted or stopped job says so in its last line, and leaves its folder free for the next."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import ROOT

pytestmark = pytest.mark.ray
TINY = ["steps=100000", "llm=tiny", "heard_seconds=2", "batch_examples=4", "checkpoint_every=1000", "log_every=1"]
TINY += ["qformer.hidden_width=32", "qformer.num_heads=2", "qformer.ffn_width=64", "ray.address=local"]
VERBS = {"train": ["run={out}"], "sweep": ["sweep={out}", "grid.optim.lr=[1e-4,2e-4]", "metric=loss"]}


@pytest.mark.parametrize(
    ("verb", "number", "code", "said"),
    [("train", signal.SIGINT, 130, "interrupted"), ("sweep", signal.SIGTERM, 143, "stopped")],
)
def test_signal_ends_a_job_with_a_hint_and_no_trace(corpus, tmp_path, verb, number, code, said):
    words = [f"manifest={corpus[0]}", f"cache={corpus[1]}", *TINY, *(word.format(out=tmp_path) for word in VERBS[verb])]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    command = [sys.executable, "-m", "pipelines", verb, *words]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # or a job of tests in the background ignores it
    job = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 300
    while not list(Path(tmp_path).rglob("metrics.jsonl")) and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list(tmp_path.glob("held-by-*.json"))
    job.send_signal(number)
    try:
        _, error = job.communicate(timeout=120)
    finally:
        job.kill()
    assert job.returncode == code, error
    assert error.splitlines()[-1] == f"salmonn: {said}; the same command continues where this one stopped"
    assert "Traceback" not in error and "PC: @" not in error
    assert not list(tmp_path.glob("held-by-*.json"))
