#!/usr/bin/env bash
# duckdb 2.0.1 with pyarrow 26.0.0, run on 2026-11-27.
#
# Hyperparameter searches like to name a trial's folder after its values: lr=0.0001/metrics.parquet. One would expect a
# query of that one file to give the columns of the file. DuckDB sees the "=" and takes the folder for a partition of a
# Hive table. A column of that name appears, and where the file has one already, the text of the folder's name stands in
# place of every value. pyarrow's read_table and polars give the file's own values.
#
# Here the file has the learning rate of each step, which decays, and DuckDB answers with the constant. What helps:
# read_parquet(path, hive_partitioning=false).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check duckdb==2.0.1 pyarrow==26.0.0
cat >"$folder/try.py" <<'END'
import os, sys
import duckdb, pyarrow, pyarrow.parquet

folder = os.path.join(sys.path[0], "lr=0.0001")
os.mkdir(folder)
path = os.path.join(folder, "metrics.parquet")
pyarrow.parquet.write_table(pyarrow.table({"step": [1, 2, 3], "lr": [1e-4, 7e-5, 5e-5]}), path)
asked = duckdb.sql(f"SELECT lr FROM '{path}'").fetchall()
plain = duckdb.sql(f"SELECT lr FROM read_parquet('{path}', hive_partitioning=false)").fetchall()
arrow = pyarrow.parquet.read_table(path)["lr"].to_pylist()
print(f"by DuckDB {[row[0] for row in asked]}; without partitioning {[row[0] for row in plain]}; by pyarrow {arrow}")
raise SystemExit(0 if len(set(asked)) == 1 and [row[0] for row in plain] == arrow else 1)
END
"$folder/venv/bin/python" "$folder/try.py"
