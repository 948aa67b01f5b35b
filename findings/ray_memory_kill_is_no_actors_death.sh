#!/usr/bin/env bash
# ray 2.60.0, run on 2026-11-28.
#
# Ray's memory monitor kills the process of an actor. Every call from then on raises OutOfMemoryError, which is no
# RayActorError: `except RayActorError`, the documented way to notice that an actor died, does not see this death.
#
# It matters to whoever goes on with another actor after a death: the dead one is taken for one whose call failed, gets the
# next piece of work, and fails them all, one by one, as fast as they come.
# What helps: only RayTaskError says that the call itself raised; any other RayError means that the actor is gone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ray==2.60.0
cat >"$folder/try.py" <<'END'
import os
import time

os.environ["RAY_memory_usage_threshold"] = "0.01"  # of this machine's memory, which is used already: for the actor alone
os.environ["RAY_memory_monitor_refresh_ms"] = "200"
import ray
from ray.exceptions import RayActorError

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


@ray.remote
class Holder:
    def hold(self):
        block = bytearray(200_000_000)
        time.sleep(30)
        return len(block)

    def answer(self):
        return 1


holder = Holder.remote()
found = []
for call in (holder.hold, holder.answer, holder.answer):
    try:
        ray.get(call.remote())
        found.append("answered")
    except Exception as error:
        found.append(f"{type(error).__name__}, a RayActorError: {isinstance(error, RayActorError)}")
ray.kill(holder)
print(f"ray {ray.__version__}; {found}")
raise SystemExit(0 if found == ["OutOfMemoryError, a RayActorError: False"] * 3 else 1)
END
RAY_AUTH_MODE=disabled "$folder/venv/bin/python" "$folder/try.py"
