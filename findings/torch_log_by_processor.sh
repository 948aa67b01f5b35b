#!/usr/bin/env bash
# torch 2.13.0 (CPU), run on 2026-11-27.
#
# Features that are computed once and cached should have the same bits on every machine of one kind. The mel table of
# Kaldi's filter banks, in float32 as torchaudio computes it, needs one logarithm per FFT bin. torch.log of float32 goes to
# MKL's vector library, whose last bit depends on the processor: Intel and AMD machines gave tables that differ in 41 of
# 32,768 entries, by up to 1.1e-5. MKL_CBWR=COMPATIBLE shows the same on one machine: another code path, other bits. Setting
# ATEN_CPU_CAPABILITY or the number of threads does not change it.
#
# What helps: take the logarithm in float64 and round it; then both paths give the same table.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.1
cat >"$folder/try.py" <<'END'
import hashlib, math, sys, torch

def table(log):
    low, high = (1127.0 * math.log(1.0 + hz / 700.0) for hz in (20.0, 8000.0))
    corners = low + torch.arange(130) * ((high - low) / 129)
    left, centre, right = corners.unfold(0, 3, 1).unsqueeze(-1).unbind(1)
    mel = 1127.0 * log(1.0 + 31.25 * torch.arange(256) / 700.0)
    weights = torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clamp(min=0.0)
    return hashlib.sha256(weights.numpy().tobytes()).hexdigest()[:16]

print(table(torch.log), table(lambda values: values.double().log().float()))
END
run() { "$folder/venv/bin/python" "$folder/try.py"; }
read -r plain_here exact_here < <(run)
read -r plain_there exact_there < <(MKL_CBWR=COMPATIBLE run)
echo "float32 log: $plain_here and, with MKL_CBWR=COMPATIBLE, $plain_there"
echo "float64 log, rounded: $exact_here and $exact_there"
# On AMD processors MKL takes the compatible path by itself.
grep -q AuthenticAMD /proc/cpuinfo || [ "$plain_here" != "$plain_there" ]
[ "$exact_here" = "$exact_there" ]
