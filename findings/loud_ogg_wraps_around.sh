#!/usr/bin/env bash
# soundfile 0.14.0 (libsndfile 1.2.2), run on 2026-11-27.
#
# Lossy codecs overshoot: loud music decodes to values above 1.0. Read as float32 they are there, and read as int16 one
# would expect the nearest value, 32,767. For MP3 it is so. For Vorbis and Opus libsndfile wraps around: 32,800 becomes
# -32,736, a full-scale click where the sound was loudest. int32 does the same. Nothing is reported.
#
# It matters to loaders that ask for int16 to save memory, or because a model's feature extractor wants it, on corpora
# of Ogg files. Quiet recordings never show it. What helps: read float32, clip, then convert.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check soundfile==0.14.0 numpy==2.4.1
cat >"$folder/try.py" <<'END'
import io
import numpy, soundfile

samples = 0.999 * numpy.sign(numpy.sin(numpy.arange(16000) / 20))
wrapped = {}
for name, container, codec in (("Vorbis", "OGG", "VORBIS"), ("Opus", "OGG", "OPUS"), ("MP3", "MP3", None)):
    file = io.BytesIO()
    soundfile.write(file, samples, 16000, format=container, subtype=codec)
    read = {kind: soundfile.read(io.BytesIO(file.getvalue()), dtype=kind)[0] for kind in ("float32", "int16")}
    nearest = numpy.clip(numpy.round(read["float32"] * 32768.0), -32768, 32767)
    wrapped[name] = int((abs(read["int16"] - nearest) > 60000).sum())
    peak = abs(read["float32"]).max()
    print(f"{name}: peak {peak:.2f}, samples of the wrong sign in int16: {wrapped[name]} of {len(samples)}")
raise SystemExit(0 if wrapped["Vorbis"] > 100 and wrapped["Opus"] > 100 and wrapped["MP3"] == 0 else 1)
END
"$folder/venv/bin/python" "$folder/try.py"
