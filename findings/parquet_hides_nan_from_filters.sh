#!/usr/bin/env bash
# pyarrow 26.0.1 and duckdb 2.0.1 (polars 2.1.0 does it right), run on 2026-11-29.
#
# Somebody counts the clips whose signal-to-noise ratio is NaN. One would expect a filter to find the same rows in a
# Parquet file as in a table in memory. Parquet keeps a minimum and a maximum per row group, and NaN counts for neither.
# pyarrow and DuckDB trust them nevertheless: a row group with 5 and NaN is "5 everywhere", and they skip it, although NaN
# is not 5. Even the question for NaN itself finds nothing. So whether a row is found depends on the other rows of its
# group: with 3, 5 and NaN, pyarrow answers is_nan() and still misses `~(snr <= 20)`.
#
# It matters to every check of a table for NaN, and to filters that drop what is good. What helps: read the column and
# filter in memory, or write null for what is not known.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyarrow==26.0.1 duckdb==2.0.1 polars==2.1.0
cat >"$folder/try.py" <<'END'
import sys
import duckdb, polars, pyarrow, pyarrow.compute, pyarrow.parquet

path = sys.path[0] + "/clips.parquet"
clips = pyarrow.table({"clip": ["a", "b", "c", "d"], "snr": [5.0, float("nan"), 5.0, float("nan")]})
pyarrow.parquet.write_table(clips, path)
field, column = pyarrow.compute.field("snr"), polars.col("snr")
filters = {
    "isnan(snr)": (field.is_nan(), column.is_nan()),
    "snr != 5": (field != 5.0, column != 5.0),
    "NOT (snr <= 20)": (~(field <= 20.0), ~(column <= 20.0)),
}
right = True
for text, (of_arrow, of_polars) in filters.items():
    memory = clips.filter(of_arrow).num_rows, len(duckdb.sql(f"SELECT * FROM clips WHERE {text}").fetchall())
    arrow = pyarrow.parquet.read_table(path, filters=of_arrow).num_rows
    duck = len(duckdb.sql(f"SELECT * FROM '{path}' WHERE {text}").fetchall())
    other = polars.scan_parquet(path).filter(of_polars).collect().height
    print(f"{text}: in memory {memory} rows; in the file pyarrow {arrow}, DuckDB {duck}, polars {other}")
    right &= (memory, arrow, duck, other) == ((2, 2), 0, 0, 2)
raise SystemExit(0 if right else 1)
END
"$folder/venv/bin/python" "$folder/try.py"
