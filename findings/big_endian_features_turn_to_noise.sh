#!/usr/bin/env bash
# ray 2.60.0 (pyarrow 26.0.1) and webdataset 1.0.2, run on 2026-11-29.
#
# Feature files of HTK are big-endian, and numpy reads them as ">f4": an array that computes like any other. One would
# expect a store to keep its values, or to refuse it. Ray Data takes its bytes for little-endian, where a map returns the
# array and where from_numpy takes it: 1.0 becomes 4.6e-41, in silence. webdataset does the same to a member .ten, and
# keeps the values of a member .npy.
#
# It matters because such features have the right shape and type and are finite, so a training just learns nothing from
# them. What helps: astype(np.float32) after reading.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    'ray[data]==2.60.0' pyarrow==26.0.1 webdataset==1.0.2 numpy==2.4.6
cat >"$folder/try.py" <<'END'
import logging, struct, sys
folder = sys.path[0]
import numpy, ray, webdataset

htk = folder + "/clip.htk"
with open(htk, "wb") as file:  # frames, 100 ns a frame, bytes a frame, kind: filter bank
    file.write(struct.pack(">iihh", 3, 100_000, 8, 7) + numpy.arange(1, 7).astype(">f4").tobytes())
frames = numpy.fromfile(htk, ">f4", offset=12).reshape(3, 2)

shard = folder + "/shard.tar"
with webdataset.TarWriter(shard) as writer:
    writer.write({"__key__": "clip", "npy": frames, "ten": [frames]})
sample = next(iter(webdataset.WebDataset(shard, shardshuffle=False).decode()))
ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="error", log_to_driver=False,
         object_store_memory=100 << 20, _temp_dir=folder + "/ray")
logging.getLogger("ray.data").setLevel("ERROR")
ray.data.DataContext.get_current().enable_progress_bars = False
found = {
    "webdataset .npy": sample["npy"],
    "webdataset .ten": sample["ten"][0],
    "Ray's map": ray.data.range(1).map(lambda row: {"frames": frames}).take(1)[0]["frames"],
    "Ray's from_numpy": numpy.stack([row["data"] for row in ray.data.from_numpy(frames).take()]),
}
for name, read in found.items():
    print(f"{name}: {read.dtype} {read.shape}, from {read.min():.3g} to {read.max():.3g} (written: from 1 to 6)")
kept = [numpy.array_equal(read, frames) for read in found.values()]
swapped = [numpy.array_equal(read.view(">f4"), frames) for read in found.values()]
raise SystemExit(0 if kept == [True, False, False, False] and swapped[1:] == [True, True, True] else 1)
END
RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0 "$folder/venv/bin/python" "$folder/try.py"
