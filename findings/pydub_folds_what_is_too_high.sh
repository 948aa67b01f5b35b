#!/usr/bin/env bash
# pydub 0.25.1, run on 2026-11-28.
#
# `set_frame_rate` draws straight lines between the samples and takes no frequency away first. All of a tone at 10 kHz, which
# 16 kHz cannot hold, comes out as a tone at 6 kHz that nobody played; scipy leaves 0.14 % of it.
#
# It matters for recordings at 44.1 or 48 kHz that were brought to 16 kHz with pydub: hiss, cymbals and birds lie folded over
# the speech, and an encoder of sounds hears other ones.
# What helps: a resampler with a low-pass filter (torchaudio, soxr, scipy's resample_poly, FFmpeg).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy scipy pydub==0.25.1 "audioop-lts; python_version >= '3.13'"
cat >"$folder/try.py" <<'END'
import numpy as np
from pydub import AudioSegment
from scipy.signal import resample_poly

RATE, TONE = 48_000, 10_000
wave = (20_000 * np.sin(2 * np.pi * TONE * np.arange(RATE) / RATE)).astype(np.int16)
segment = AudioSegment(wave.tobytes(), frame_rate=RATE, sample_width=2, channels=1)
folded = np.array(segment.set_frame_rate(16_000).get_array_of_samples(), np.float64)
filtered = resample_poly(wave.astype(np.float64), 1, 3)


def loudness(samples):
    return np.sqrt(np.mean(samples[1000:-1000] ** 2) / np.mean(wave.astype(np.float64) ** 2))


spectrum = np.abs(np.fft.rfft(folded * np.hanning(len(folded))))
loudest = np.fft.rfftfreq(len(folded), 1 / 16_000)[spectrum.argmax()]
print(f"{TONE} Hz at {RATE} Hz -> 16000 Hz: pydub {loudness(folded):.2f} of it at {loudest:.0f} Hz, scipy {loudness(filtered):.4f}")
raise SystemExit(0 if round(loudest) == 6000 and loudness(folded) > 0.9 and loudness(filtered) < 0.01 else 1)
END
"$folder/venv/bin/python" -W ignore "$folder/try.py"
