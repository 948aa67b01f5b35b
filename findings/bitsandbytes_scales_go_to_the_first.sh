#!/usr/bin/env bash
# bitsandbytes 0.50.2 and torch 2.11.0, run on 2026-11-28, on a CPU.
#
# Two LLM.int8() layers share one weight, as the copies of a frozen model do that are to take its memory once. The first
# layer that is used takes the row scales out of the weight and keeps them for itself. The second then multiplies by the
# bare whole numbers from -127 to 127: its output is tens of times as large, and no error says so.
#
# It matters to whoever shares a quantised base model among several adapters or trials (bf16 and NF4 can be shared).
# What helps: call init_8bit_state() before the copies are made, and share the layer's `state` as well as its weight.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.11.0 numpy bitsandbytes==0.50.2
cat >"$folder/try.py" <<'END'
import torch
from bitsandbytes.nn import Int8Params, Linear8bitLt


def layer(weight):
    made = Linear8bitLt(64, 32, bias=False, has_fp16_weights=False)
    made.weight = weight
    return made


def pair(*, share_state):
    torch.manual_seed(0)
    weight = Int8Params(torch.randn(32, 64), requires_grad=False, has_fp16_weights=False).to("cpu")
    first, second = layer(weight), layer(weight)
    if share_state:
        first.init_8bit_state()
        second.state = first.state
    return first, second


x = torch.randn(4, 64, dtype=torch.bfloat16)
factors = {}
for share_state in (False, True):
    first, second = pair(share_state=share_state)
    expected, found = first(x).float(), second(x).float()
    factors[share_state] = (found / expected).median().item()
    bare = x.float() @ second.weight.data.float().T
    print(f"state shared: {share_state}; second / first: {factors[share_state]:.3g}; "
          f"second is the product with bare int8: {torch.allclose(found, bare, rtol=0.02)}")
raise SystemExit(0 if factors[False] > 10 and factors[True] == 1 else 1)
END
"$folder/venv/bin/python" "$folder/try.py" 2>&1 | grep -v "gemm_4bit_forward"
