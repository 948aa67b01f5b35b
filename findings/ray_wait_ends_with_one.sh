#!/usr/bin/env bash
# ray 2.60.0, run on 2026-11-28.
#
# A handler of SIGTERM calls sys.exit(15). If the signal comes while the program waits in ray.wait or ray.get, that is not the
# SystemExit that arrives: Ray catches it in its own code and raises another one, of code 1, without a word. Between two calls
# of Ray the same signal gives 15.
#
# It matters to whoever tells "stopped" from "failed" by the exit code, as schedulers and shells do.
# What helps: let the handler note that it was called, and look at the note, not at the code.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ray==2.60.0
cat >"$folder/try.py" <<'END'
import os
import signal
import sys
import threading
import time

import ray

ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))


@ray.remote
def slow():
    time.sleep(60)


def code_of(wait):
    threading.Timer(3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    try:
        wait()
    except SystemExit as error:
        return error.code


found = {
    "time.sleep": code_of(lambda: time.sleep(30)),
    "ray.wait": code_of(lambda: ray.wait([slow.remote()])),
    "ray.get": code_of(lambda: ray.get(slow.remote())),
}
print(f"sys.exit(15) in a handler of SIGTERM gives, by what it interrupts: {found}", flush=True)
os._exit(0 if (found["time.sleep"], found["ray.wait"], found["ray.get"]) == (15, 1, 1) else 1)
END
unset RAY_ADDRESS RAY_TMPDIR
"$folder/venv/bin/python" "$folder/try.py" 2>&1 | tail -1
