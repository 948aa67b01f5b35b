#!/usr/bin/env bash
# litdata 0.2.76 with torch 2.13.0 (CPU), run on 2026-11-27.
#
# litdata stores samples of any length and shape in chunks. A program writes one-dimensional arrays, the first in
# float32, a later one in float64, as decoders and resamplers give them. One would expect both back, or an error when
# the second is written. The file keeps one dtype, the first sample's, and the bytes of all. The float64 sample is read
# as float32: twice as long, with other values, and no warning. Two-dimensional arrays do carry their dtype each.
#
# It matters to waveforms: one clip that took another way through the program is noise afterwards. What helps: one
# astype before the writer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 litdata==0.2.76 numpy==2.4.6
cat >"$folder/try.py" <<'END'
import sys
import numpy
from litdata.streaming import StreamingDataset
from litdata.streaming.writer import BinaryWriter

def stored(name, *samples):
    writer = BinaryWriter(f"{sys.path[0]}/{name}", chunk_bytes="1MB")
    for number, sample in enumerate(samples):
        writer[number] = sample
    writer.done()
    writer.merge()
    data = StreamingDataset(f"{sys.path[0]}/{name}")
    return [data[index] for index in range(len(data))]

wave = numpy.arange(1, 5)
plain = stored("waves", wave.astype(numpy.float32), wave.astype(numpy.float64))
flat = stored("rows", wave[None].astype(numpy.float32), wave[None].astype(numpy.float64))
print(f"wrote {wave} twice, read {plain[0]} and {plain[1]}; as rows of a matrix: {flat[0]} and {flat[1]}")
right = numpy.array_equal(flat[1], wave[None]) and numpy.array_equal(plain[0], wave)
raise SystemExit(0 if right and plain[1].dtype == numpy.float32 and len(plain[1]) == 8 else 1)
END
"$folder/venv/bin/python" "$folder/try.py"
