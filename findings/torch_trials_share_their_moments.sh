#!/usr/bin/env bash
# torch 2.13.0, run on 2026-11-29.
#
# A sweep loads a checkpoint once and starts its trials from it one after the other, in one process. One would expect all
# of them to start from the same state. The model's load_state_dict copies. The optimizer's copies only the dictionaries:
# where dtype and device fit, it takes the tensors themselves. So the first trial's steps are written into the loaded
# checkpoint, and the second starts with the moments and the step count at which the first has ended.
#
# It matters because the result of a trial then depends on which ran before it, and nothing shows it. Where the dtype
# differs, the moments are converted and so are copies, but the step count is still shared. What helps: read the
# checkpoint for each trial, or load copy.deepcopy(checkpoint["optimizer"]).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat >"$folder/try.py" <<'END'
import copy, sys
import torch

path = sys.path[0] + "/checkpoint.pt"
torch.manual_seed(0)
x, y = torch.randn(32, 8), torch.randn(32, 1)


def start(checkpoint=None):
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    if checkpoint:
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
    return model, optimizer


def train(model, optimizer):
    for _ in range(10):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    return torch.nn.functional.mse_loss(model(x), y).item()


model, optimizer = start()
train(model, optimizer)
torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)

checkpoint = torch.load(path)
weights = copy.deepcopy(checkpoint["model"])
steps, losses = [], []
for trial in range(3):
    steps.append(int(checkpoint["optimizer"]["state"][0]["step"]))
    losses.append(train(*start(checkpoint)))
fresh = [train(*start(torch.load(path))) for trial in range(3)]
same_weights = all(torch.equal(weights[name], checkpoint["model"][name]) for name in weights)
print(f"three equal trials, checkpoint loaded once: losses {losses}, steps at their start {steps}")
print(f"checkpoint loaded for each: losses {fresh}")
print(f"weights in the checkpoint untouched: {same_weights}")
raise SystemExit(0 if steps == [10, 20, 30] and len(set(losses)) == 3 and len(set(fresh)) == 1 and same_weights else 1)
END
"$folder/venv/bin/python" "$folder/try.py"
