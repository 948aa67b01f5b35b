#!/usr/bin/env bash
# torch 2.13.0 (CPU, gloo, two processes), run on 2026-11-27.
#
# torch.max of values with a NaN is NaN, and a sum over processes is NaN where one process has a NaN. So one would
# expect of all_reduce with MAX, over gloo. The result depends on which process holds the NaN: process 0's stays,
# process 1's is lost, and the number of the other process stands in its place. MIN does the same.
#
# It matters to training loops that take the largest loss or gradient norm of all processes and stop at a NaN: in a test
# with the NaN on process 0 the alarm works. What helps: reduce isnan() as a number with SUM or MAX, beside the value.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat >"$folder/try.py" <<'END'
import os, sys
import torch
import torch.distributed as dist

def worker(rank, meeting):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    nan, seen = float("nan"), {}
    for name, operation in (("MAX", dist.ReduceOp.MAX), ("MIN", dist.ReduceOp.MIN), ("SUM", dist.ReduceOp.SUM)):
        values = torch.tensor([nan, 1.0] if rank == 0 else [1.0, nan])  # NaN on process 0, NaN on process 1
        dist.all_reduce(values, op=operation)
        seen[name] = values.isnan().tolist()
    dist.destroy_process_group()
    print(f"process {rank}: NaN of process 0 and of process 1 still there: {seen}", flush=True)
    sys.exit(0 if seen == {"MAX": [True, False], "MIN": [True, False], "SUM": [True, True]} else 1)

if __name__ == "__main__":
    torch.multiprocessing.spawn(worker, (os.path.join(sys.path[0], "meeting"),), nprocs=2)
END
"$folder/venv/bin/python" "$folder/try.py"
