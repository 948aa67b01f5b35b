#!/usr/bin/env bash
# peft 0.21.2 and torch 2.13.0 (CPU, gloo, two processes), run on 2026-11-27.
#
# fully_shard spreads a model over processes and averages its gradients. A LoRA adapter is added by peft, in a separate
# line of the program, before or after. One would expect the same training, or an error. After fully_shard the adapter's
# weights are plain tensors that nobody averages: each process follows the gradient of its own share of the batch. The
# processes end with different adapters, the loss of each goes down, and what is saved is that of process 0.
#
# What helps: add the adapter first, or average the gradients of the trained weights in the training loop.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 peft==0.21.2 numpy==2.4.6
cat >"$folder/try.py" <<'END'
import os, sys
import peft, torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

def adapter_gradient(adapter_first):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    config = peft.LoraConfig(r=2, target_modules=["0"])
    if adapter_first:
        adapted = peft.get_peft_model(model, config)
        fully_shard(adapted, mesh=mesh)
    else:
        fully_shard(model, mesh=mesh)
        adapted = peft.get_peft_model(model, config)
    torch.manual_seed(dist.get_rank())  # each process has examples of its own
    adapted(torch.randn(4, 8)).square().sum().backward()
    gradient = adapted.base_model.model[0].lora_B["default"].weight.grad
    return gradient.full_tensor() if adapter_first else gradient

def worker(rank, meeting):
    global mesh
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    differences = []
    for adapter_first in (True, False):
        gradient = adapter_gradient(adapter_first)
        both = [torch.empty_like(gradient) for _ in range(2)]
        dist.all_gather(both, gradient.contiguous())
        differences.append(float((both[0] - both[1]).abs().max()))
    dist.destroy_process_group()
    if rank == 0:
        print(f"gradients of two processes differ by {differences[0]} with the adapter first, {differences[1]:.2f} after")
    sys.exit(0 if differences[0] == 0 and differences[1] > 0.1 else 1)

if __name__ == "__main__":
    torch.multiprocessing.spawn(worker, (os.path.join(sys.path[0], "meeting"),), nprocs=2)
END
"$folder/venv/bin/python" "$folder/try.py"
