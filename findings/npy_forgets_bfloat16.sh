#!/usr/bin/env bash
# numpy 2.4.1 with ml-dtypes 0.6.0, run on 2026-11-27.
#
# ml_dtypes gives numpy the type bfloat16, and arithmetic and saving work with it. One would expect numpy.load to give
# back what numpy.save wrote, or an error at one of the two. The .npy format has no name for the type. The file says
# "two bytes of anything", and load returns such an array, of the right shape, without a warning. The error comes later,
# at the first sum, and where only bytes are passed on it never comes. Which type the bytes were is written nowhere.
#
# It matters to caches of features that a model computed in bfloat16. What helps: array.view("uint16") before, with the
# type named beside it, or safetensors from torch.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.1 ml-dtypes==0.6.0
cat >"$folder/try.py" <<'END'
import io
import ml_dtypes, numpy

file = io.BytesIO()
numpy.save(file, numpy.ones((2, 3), ml_dtypes.bfloat16))
file.seek(0)
loaded = numpy.load(file)
right = numpy.array_equal(loaded.view(ml_dtypes.bfloat16), numpy.ones((2, 3)))
try:
    loaded + 1
    added = "works"
except TypeError as error:
    added = type(error).__name__
print(f"saved as bfloat16, loaded as {loaded.dtype} of shape {loaded.shape}; adding 1: {added}")
print(f"viewed as bfloat16, the values are right: {right}")
raise SystemExit(0 if loaded.dtype == "V2" and added != "works" and right else 1)
END
"$folder/venv/bin/python" "$folder/try.py"
