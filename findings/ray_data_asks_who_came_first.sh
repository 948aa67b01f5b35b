#!/usr/bin/env bash
# ray 2.60.0 with webdataset 1.0.2, run on 2026-11-27.
#
# Samples of a WebDataset need not all have the same members: one clip has features of a second encoder, another has
# not. One would expect ray.data.read_webdataset to accept that, or to refuse it. It depends on the order. If the first
# sample of a shard lacks the array, the rows without it hold None. If the first has it and a later one lacks it, the
# read fails with a ValueError about tensor extension types, which names no sample.
#
# It matters because a test on a few samples, or on another order, says nothing about the next shard. What helps: the
# same members in every sample.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'ray[data]==2.60.0' webdataset==1.0.2 numpy==2.4.1
cat >"$folder/try.py" <<'END'
import io, sys, tarfile
import numpy, ray

ray.init(num_cpus=1, include_dashboard=False, logging_level="error", log_to_driver=False, object_store_memory=100 << 20)
ray.data.DataContext.get_current().enable_progress_bars = False

def read(*has_array):
    path = sys.path[0] + "/shard.tar"
    array = io.BytesIO()
    numpy.save(array, numpy.arange(3))
    with tarfile.open(path, "w") as tar:
        for number, has in enumerate(has_array):
            for kind, data in {"txt": b"words", **({"npy": array.getvalue()} if has else {})}.items():
                member = tarfile.TarInfo(f"clip{number}.{kind}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    try:
        return [row.get("npy") is not None for row in ray.data.read_webdataset(path).take_all()]
    except ValueError as error:
        return type(error).__name__

last, first = read(False, False, True, True), read(True, True, False, False)
print(f"array in the last two of four samples: rows with it {last}; in the first two: {first}")
raise SystemExit(0 if last == [False, False, True, True] and "ValueError" in str(first) else 1)
END
RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0 "$folder/venv/bin/python" "$folder/try.py"
