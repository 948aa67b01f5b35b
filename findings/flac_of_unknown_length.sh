#!/usr/bin/env bash
# soundfile 0.14.0 with libsndfile 1.2.2, run on 2026-11-27.
#
# A FLAC stream whose total_samples is 0 is legal: the format says that 0 means unknown, and encoders that write to a pipe
# leave it so. soundfile opens it, says that it has 9,223,372,036,854,775,807 frames, and read() without a count raises an
# error about an array that large. The samples are all there: reading in blocks gives them.
#
# It matters to loaders that trust info().frames or duration, and to whoever probes lengths before decoding.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check soundfile==0.14.0 numpy==2.4.1
cat >"$folder/try.py" <<'END'
import io, numpy, soundfile

samples = (8000 * numpy.sin(numpy.arange(16000) / 20)).astype(numpy.int16)
file = io.BytesIO()
soundfile.write(file, samples, 16000, format="FLAC")
data = bytearray(file.getvalue())
assert data[:4] == b"fLaC" and data[4] & 0x7F == 0  # the first block is STREAMINFO
data[21] &= 0xF0  # 36 bits of total_samples, from the low half of this byte on
data[22:26] = bytes(4)
frames = soundfile.info(io.BytesIO(data)).frames
try:
    soundfile.read(io.BytesIO(data))
    whole = "works"
except Exception as error:
    whole = f"{type(error).__name__}"
with soundfile.SoundFile(io.BytesIO(data)) as stream:
    blocks = []
    while len(block := stream.read(4000, dtype="int16")):
        blocks.append(block)
same = numpy.array_equal(numpy.concatenate(blocks), samples)
print(f"frames by info: {frames}; read() of all: {whole}; read in blocks gives the samples: {same}")
raise SystemExit(0 if frames == 2**63 - 1 and whole != "works" and same else 1)
END
"$folder/venv/bin/python" "$folder/try.py"
