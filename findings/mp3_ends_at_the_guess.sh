#!/usr/bin/env bash
# soundfile 0.14.0 (libsndfile 1.2.2), mutagen 1.48.1 and PyAV 18.1.0 (FFmpeg), run on 2026-11-27.
#
# An MP3 of variable bit rate without a Xing frame is legal: a piece cut out of a stream has none. Every library guesses
# its length from the first frames. That a guess is wrong is no surprise. libsndfile then ends the *reading* at its
# guess: of a recording that starts loud, 8 of 40 seconds arrive, and no error. PyAV decodes all of it. Where the guess
# is too long, libsndfile reads to the true end. mutagen, which many manifests are made with, makes the same guess, so
# the manifest agrees with the loss.
#
# What helps: take lengths from a full decode by FFmpeg, once, and compare.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check soundfile==0.14.0 numpy==2.4.1 av==18.1.0 mutagen==1.48.1
cat >"$folder/try.py" <<'END'
import io
import av, mutagen.mp3, numpy, soundfile

RATE = 44100
loud = 0.3 * numpy.random.default_rng(0).normal(size=20 * RATE)
samples = numpy.concatenate([loud, numpy.zeros(20 * RATE)])
file = io.BytesIO()
with soundfile.SoundFile(file, "w", RATE, 1, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5) as writer:
    writer.write(samples)
data = file.getvalue()
kilobits = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320][data[2] >> 4]
first = 144 * kilobits * 1000 // RATE + (data[2] >> 1 & 1)  # bytes of the first frame, the one with the Xing mark
assert b"Xing" in data[:first] and data[first] == 0xFF
bare = data[first:]
read = len(soundfile.read(io.BytesIO(bare))[0]) / RATE
guess = mutagen.mp3.MP3(io.BytesIO(bare)).info.length
with av.open(io.BytesIO(bare)) as container:
    decoded = sum(frame.samples for frame in container.decode(audio=0)) / RATE
print(f"of 40 s soundfile reads {read:.1f} s, mutagen says {guess:.1f} s, PyAV decodes {decoded:.1f} s")
raise SystemExit(0 if read < 12 and guess < 12 and abs(decoded - 40) < 0.2 else 1)
END
"$folder/venv/bin/python" "$folder/try.py"
