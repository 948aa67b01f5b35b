#!/usr/bin/env bash
# peft 0.21.2 and torch 2.11.0, run on 2026-11-28.
#
# A model in evaluation mode gets a second adapter. The model still says `training == False`, but the new adapter's dropout
# is on: the same input gives another output each time, until someone calls eval() again.
#
# It matters to servers that put adapters beside one another under one frozen model while it answers.
# What helps: model.eval() after each add_adapter.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.11.0 numpy peft==0.21.2
cat >"$folder/try.py" <<'END'
import torch
from peft import LoraConfig, get_peft_model


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 64)

    def forward(self, x):
        return self.layer(x)


def lora():
    return LoraConfig(r=8, target_modules=["layer"], lora_dropout=0.5, init_lora_weights=False)


model = get_peft_model(Small(), lora(), "first").eval()
model.add_adapter("late", lora())
x = torch.randn(1, 64)
same = {}
for name in ("first", "late"):
    model.set_adapter(name)
    same[name] = torch.equal(model(x), model(x))
model.eval()
again = torch.equal(model(x), model(x))
print(f"training: {model.training}; the same output twice: {same}; after another eval(): {again}")
raise SystemExit(0 if same == {"first": True, "late": False} and again else 1)
END
"$folder/venv/bin/python" "$folder/try.py"
