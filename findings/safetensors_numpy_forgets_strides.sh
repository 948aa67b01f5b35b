#!/usr/bin/env bash
# safetensors 0.8.0 with numpy 2.4.1, run on 2026-11-27.
#
# A feature matrix is often a view: frames come out transposed, or flipped, or in Fortran order. numpy.save keeps such
# an array, and safetensors.torch.save refuses one with an error. safetensors.numpy.save writes the memory as it stands
# and the shape as it should be. The file is valid, has the right shape and dtype, and holds the values in another
# order.
#
# It matters to whoever caches features or converts weights through numpy. What helps: numpy.ascontiguousarray before.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.1
cat >"$folder/try.py" <<'END'
import numpy
from safetensors.numpy import load, save

frames = numpy.arange(6, dtype=numpy.float32).reshape(2, 3)
views = {"transposed": frames.T, "flipped": frames[:, ::-1], "Fortran order": numpy.asfortranarray(frames)}
kept = {name: numpy.array_equal(load(save({"x": view}))["x"], view) for name, view in views.items()}
copied = all(numpy.array_equal(load(save({"x": numpy.ascontiguousarray(view)}))["x"], view) for view in views.values())
print(f"the same values after save and load: {kept}; of contiguous copies: {copied}")
raise SystemExit(0 if not any(kept.values()) and copied else 1)
END
"$folder/venv/bin/python" "$folder/try.py"
