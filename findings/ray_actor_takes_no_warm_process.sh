#!/usr/bin/env bash
# ray 2.60.0, run on 2026-11-27.
#
# Starting an actor that imports PyTorch and transformers takes many seconds. Ray keeps idle worker processes, and a task
# that imports the same modules leaves its process idle with everything loaded. One would expect an actor to get such a
# process, so that a "warm-up" task pays the import beforehand. It never does: an actor gets a process that has run
# nothing, or a new one, while the warm ones stay idle. Tasks do get warm processes.
#
# What helps: keep the actor and give it new work; or RAY_preload_python_modules, which all processes then pay.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ray==2.60.0
cat >"$folder/try.py" <<'END'
import os, time
import ray

ray.init(num_cpus=2, include_dashboard=False, logging_level="error", object_store_memory=100 << 20)

@ray.remote(num_cpus=0)
def warm_up():
    time.sleep(1)
    return os.getpid()

@ray.remote(num_cpus=0)
class Actor:
    def pid(self):
        return os.getpid()

warm = set(ray.get([warm_up.remote() for _ in range(4)]))
again = set(ray.get([warm_up.remote() for _ in range(2)]))
actors = [Actor.remote() for _ in range(3)]
pids = set(ray.get([actor.pid.remote() for actor in actors]))
print(f"{len(warm)} warm processes; used again by tasks: {len(warm & again)} of {len(again)}, by actors: {len(warm & pids)} of 3")
raise SystemExit(0 if again <= warm and not warm & pids else 1)
END
RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0 "$folder/venv/bin/python" "$folder/try.py"
