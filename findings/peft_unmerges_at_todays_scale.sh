#!/usr/bin/env bash
# peft 0.21.2 with torch 2.13.0 (CPU), run on 2026-11-27.
#
# A LoRA adapter can be merged into the base weights, for speed, and taken out again: unmerge gives the base weights
# back up to rounding. Between the two, somebody sets another scale, as one does to try how strong an adapter should be.
# One would expect the scale to wait, or an error. unmerge subtracts the adapter at the *new* scale from weights that
# hold the old one. The base model is changed for good, every adapter loaded later sits on it, and no warning is given.
#
# What helps: unmerge first, then scale, then merge again.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 peft==0.21.2 numpy==2.4.6
cat >"$folder/try.py" <<'END'
import peft, torch

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 16))
adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["0"]))
layer = adapted.base_model.model[0]
torch.nn.init.normal_(layer.lora_B["default"].weight)
before = layer.base_layer.weight.clone()
changed = []
for scale in (1.0, 2.0):
    adapted.merge_adapter()
    layer.set_scale("default", scale)
    adapted.unmerge_adapter()
    changed.append(float((layer.base_layer.weight - before).detach().abs().max()))
print(f"base weights after merge and unmerge: changed by {changed[0]:.0e}; with a new scale between: by {changed[1]:.2f}")
raise SystemExit(0 if changed[0] < 1e-5 and changed[1] > 0.1 else 1)
END
"$folder/venv/bin/python" "$folder/try.py"
