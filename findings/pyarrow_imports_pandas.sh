#!/usr/bin/env bash
# pyarrow 26.0.0 with pandas 3.0.0, run on 2026-11-27.
#
# A program that reads Parquet with pyarrow and never asks for pandas would not load it, one would think. pyarrow imports
# pandas, where it is installed, the first time that it makes an array of a plain list, or compares a column with a plain
# number: it asks whether the value is a pandas Series. Half a second and 35 MB, in each of many small processes.
#
# Setting sys.modules["pandas"] to None does not help, it makes pyarrow fail. What helps: a finder in sys.meta_path that
# raises ModuleNotFoundError for pandas.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyarrow==26.0.0 pandas==3.0.0 numpy==2.4.1
cat >"$folder/try.py" <<'END'
import sys
import pyarrow
import pyarrow.compute

before = "pandas" in sys.modules
pyarrow.array(["a", "bb"])
after = "pandas" in sys.modules
print(f"pandas loaded with pyarrow and pyarrow.compute: {before}; after making an array of two texts: {after}")
raise SystemExit(0 if after and not before else 1)
END
"$folder/venv/bin/python" "$folder/try.py"
