#!/usr/bin/env bash
# ray 2.60.0, run on 2026-11-28.
#
# A counter of ray.util.metrics cannot be set up at zero: inc(0) raises, and until the first inc() the series is not on the
# node's page of metrics at all. Its first value there is what was counted by then. Prometheus' rate() and increase() compare
# the values that it saw, so they never see what was counted before the first scrape: here all 222.
#
# It matters to whoever draws "answers per second" of jobs that last minutes, or alerts on increase(errors[1h]) > 0: the first
# error of each process, which is mostly the only one, makes no alert.
# What helps: alert on a Gauge that is set to 0 at the start, or on the counter itself (`> 0`, or `unless … offset 1h`).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "ray[default]==2.60.0"
cat >"$folder/try.py" <<'END'
import socket
import time
import urllib.request

import ray
from ray.util.metrics import Counter, Gauge

with socket.create_server(("127.0.0.1", 0)) as server:
    port = server.getsockname()[1]
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, _metrics_export_port=port)
answers = Counter("answers", "given so far", ("run",))
waiting = Gauge("waiting", "questions that wait", ("run",))
try:
    answers.inc(0, tags={"run": "a"})
    refused = ""
except ValueError as error:
    refused = str(error)
waiting.set(0, tags={"run": "a"})


def values(name):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    return [float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)]


def seen(name, *, seconds):
    deadline = time.monotonic() + seconds
    while not values(name) and time.monotonic() < deadline:
        time.sleep(1)
    return values(name)


gauge = seen("ray_waiting", seconds=60)
before = values("ray_answers")
answers.inc(222, tags={"run": "a"})
after = seen("ray_answers", seconds=60)
print(f"inc(0): {refused!r}; a gauge at zero: {gauge}; the counter before: {before}, first seen at: {after}")
raise SystemExit(0 if refused and gauge == [0.0] and before == [] and after == [222.0] else 1)
END
unset RAY_ADDRESS RAY_TMPDIR
"$folder/venv/bin/python" "$folder/try.py" 2>&1 | tail -1
