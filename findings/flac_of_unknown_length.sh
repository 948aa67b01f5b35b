#!/usr/bin/env bash
# soundfile 0.14.0 with libsndfile 1.2.2, run on 2026-11-27.
#
# A FLAC stream whose total_samples is 0 is legal: the format says that 0 means unknown, and encoders that write to a pipe
# leave it so. soundfile opens it and says that it has 9,223,372,036,854,775,807 frames. read() of all raises ValueError.
# Blocks can be read, but the block that reaches the end raises an error of a seek, and its samples are lost.
#
# It matters to loaders that trust info().frames or duration, that probe lengths before decoding, or that read until a
# block is short. With the number written into the 36 bits of the header, the same bytes read like any other file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check soundfile==0.14.0 numpy==2.4.1
cat >"$folder/try.py" <<'END'
import io, sys, numpy, soundfile

samples = (8000 * numpy.sin(numpy.arange(16000) / 20)).astype(numpy.int16)
file = io.BytesIO()
soundfile.write(file, samples, 16000, format="FLAC")
data = bytearray(file.getvalue())
assert data[:4] == b"fLaC" and data[4] & 0x7F == 0  # the first block is STREAMINFO
data[21] &= 0xF0  # 36 bits of total_samples, from the low half of this byte on
data[22:26] = bytes(4)
path = sys.path[0] + "/unknown.flac"

open(path, "wb").write(data)
frames, blocks, ended = soundfile.info(path).frames, [], "empty block"
try:
    soundfile.read(path)
    whole = "works"
except Exception as error:
    whole = type(error).__name__
with soundfile.SoundFile(path) as stream:
    try:
        while len(block := stream.read(4096, dtype="int16")):
            blocks.append(block)
    except Exception as error:
        ended = type(error).__name__
got = numpy.concatenate(blocks)
same = numpy.array_equal(got, samples[: len(got)])
print(f"frames by info: {frames}; read of all: {whole}; blocks give {len(got)} of {len(samples)} samples, the same: {same}; then: {ended}")
raise SystemExit(0 if frames == 2**63 - 1 and whole == "ValueError" and same and len(got) < len(samples) and ended == "LibsndfileError" else 1)
END
"$folder/venv/bin/python" "$folder/try.py"
