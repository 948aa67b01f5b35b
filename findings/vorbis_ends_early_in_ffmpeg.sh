#!/usr/bin/env bash
# soundfile 0.14.0 (libsndfile 1.2.2) and PyAV 18.1.0 (FFmpeg), run on 2026-11-27.
#
# A Vorbis file written by soundfile is read back by soundfile with every sample. FFmpeg decodes the same file, and one
# would expect the same length. It depends on the sound. Of noise all samples arrive. Of a plain tone, or of silence,
# the last 256 samples are missing, 16 ms at 16 kHz, and the first sample bears the time stamp 256. What arrives is
# right.
#
# It matters to code that places decoded sound by its time stamps, where such a recording moves by 16 ms, and to tests
# that compare lengths across decoders and were tried on noise. What helps: count from the first decoded sample, and
# take lengths and samples from the same decoder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check soundfile==0.14.0 av==18.1.0 numpy==2.4.1
cat >"$folder/try.py" <<'END'
import io
import av, numpy, soundfile

def lengths(samples):
    file = io.BytesIO()
    soundfile.write(file, samples, 16000, format="OGG", subtype="VORBIS")
    whole = soundfile.read(io.BytesIO(file.getvalue()))[0]
    with av.open(io.BytesIO(file.getvalue())) as source:
        frames = list(source.decode(audio=0))
    decoded = numpy.concatenate([frame.to_ndarray()[0] for frame in frames])
    assert numpy.allclose(decoded, whole[: len(decoded)], atol=1e-5)
    return len(whole), len(decoded), frames[0].pts

tone = lengths(0.3 * numpy.sin(numpy.arange(32000) / 20))
noise = lengths(0.1 * numpy.random.default_rng(0).normal(size=32000))
print(f"samples by soundfile, by FFmpeg, and FFmpeg's first time stamp: noise {noise}, tone {tone}")
raise SystemExit(0 if noise == (32000, 32000, 0) and tone == (32000, 31744, 256) else 1)
END
"$folder/venv/bin/python" "$folder/try.py"
