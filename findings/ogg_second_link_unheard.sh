#!/usr/bin/env bash
# soundfile 0.14.0 (libsndfile 1.2.2) and PyAV 18.1.0 (FFmpeg), run on 2026-11-27.
#
# An Ogg file may be a chain of streams, one after the other: the format says so, internet radio is recorded so, and
# `cat` makes one. libsndfile reads the first link, reports its length as the file's, and ends without an error. PyAV
# decodes all links, though the duration that it reports is the last link's.
#
# It matters where a manifest is made with one library and the samples are read with the other: three minutes of speech
# become the first few seconds, beside the transcript of all. What helps: decode once with FFmpeg into FLAC, or compare
# the length with a count of the decoded samples.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check soundfile==0.14.0 numpy==2.4.1 av==18.1.0
cat >"$folder/try.py" <<'END'
import io
import av, numpy, soundfile

def ogg(seconds):
    file = io.BytesIO()
    soundfile.write(file, 0.3 * numpy.sin(numpy.arange(16000 * seconds) / 20), 16000, format="OGG", subtype="OPUS")
    return file.getvalue()

chain = ogg(1) + ogg(3)
read = len(soundfile.read(io.BytesIO(chain))[0]) / 16000
with av.open(io.BytesIO(chain)) as container:
    reported = container.duration / av.time_base
    decoded = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))
print(f"1 s and 3 s in a chain; soundfile reads {read:.2f} s; PyAV reports {reported:.2f} s and decodes {decoded:.2f} s")
raise SystemExit(0 if read == 1 and abs(decoded - 4) < 0.1 and abs(reported - 3) < 0.1 else 1)
END
"$folder/venv/bin/python" "$folder/try.py"
