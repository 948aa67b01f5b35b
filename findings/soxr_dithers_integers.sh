#!/usr/bin/env bash
# soxr 1.1.0 with numpy 2.4.1, run on 2026-11-27.
#
# Recordings are int16, so one may give int16 to the resampler and expect the float32 result, rounded. soxr adds dither
# to integer output: a third of the samples are one step away from the rounded value. Repeating the call gives the same
# bits, which hides it. But the noise depends on the blocks: a stream read in blocks of 4,000 samples gives other
# samples than the same recording at once. In float32 the two agree to the last bit.
#
# It matters where a long recording is resampled by blocks in one place and whole in another, and the features, or
# digests of them, are compared. What helps: resample in float32.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check soxr==1.1.0 numpy==2.4.1
cat >"$folder/try.py" <<'END'
import numpy, soxr

samples = (3000 * numpy.random.default_rng(0).normal(size=44100)).astype(numpy.int16)

def by_blocks(signal):
    stream = soxr.ResampleStream(44100, 16000, 1, dtype=str(signal.dtype))
    starts = range(0, len(signal), 4000)
    blocks = [stream.resample_chunk(signal[at : at + 4000], last=at + 4000 >= len(signal)) for at in starts]
    return numpy.concatenate(blocks)

floats = samples.astype(numpy.float32) / 32768
whole, whole_float = soxr.resample(samples, 44100, 16000), soxr.resample(floats, 44100, 16000)
dithered = numpy.mean(whole != numpy.round(whole_float * 32768))
integers, real = numpy.mean(by_blocks(samples) != whole), numpy.mean(by_blocks(floats) != whole_float)
print(f"int16 against rounded float32: {dithered:.0%} differ")
print(f"blocks against whole: int16 {integers:.0%} differ, float32 {real:.0%}")
raise SystemExit(0 if dithered > 0.1 and integers > 0.1 and real == 0 else 1)
END
"$folder/venv/bin/python" "$folder/try.py"
