#!/usr/bin/env bash
# ray 2.60.0, run on 2026-11-28.
#
# A job that has ended may be deleted. One that is deleted as soon as its status says SUCCEEDED comes back a moment later:
# as FAILED, without its command ("Entrypoint not found."), because whoever watches it finds no record and writes one.
#
# What helps: leave the record, or wait some seconds before deleting it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'ray[default]==2.60.0'
cat >"$folder/try.py" <<'END'
import time
import ray
from ray.job_submission import JobStatus, JobSubmissionClient

settings = {"num_cpus": 1, "dashboard_port": 0, "logging_level": "error", "object_store_memory": 100 << 20}
context = ray.init("local", include_dashboard=True, **settings)
client = JobSubmissionClient(f"http://{context.dashboard_url}")
client.submit_job(entrypoint="true", submission_id="once")
while client.get_job_status("once") != JobStatus.SUCCEEDED:
    time.sleep(0.05)
client.delete_job("once")
gone = all(job.submission_id != "once" for job in client.list_jobs())
time.sleep(15)
back = [job for job in client.list_jobs() if job.submission_id == "once"]
print(f"deleted: {gone}; 15 s later:", [(str(job.status.value), job.entrypoint) for job in back])
raise SystemExit(0 if gone and back and back[0].status == JobStatus.FAILED else 1)
END
RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0 "$folder/venv/bin/python" "$folder/try.py"
