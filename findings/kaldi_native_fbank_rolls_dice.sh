#!/usr/bin/env bash
# kaldi-native-fbank 1.23.0, run on 2026-11-27.
#
# Filter banks are arithmetic: the same samples give the same features, one would think, and torchaudio's kaldi.fbank
# does so. kaldi-native-fbank, which serves in speech runtimes and beside exported models, adds random noise to the
# samples by default. Two runs over one recording differ, a little in sound and by more than 1 in digital silence, where
# the logarithm sees the noise alone.
#
# It matters to cached features, to digests of them, and to tests against another implementation. What helps:
# frame_opts.dither = 0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check kaldi-native-fbank==1.23.0 numpy==2.4.1
cat >"$folder/try.py" <<'END'
import kaldi_native_fbank, numpy

def features(samples, **frame_options):
    options = kaldi_native_fbank.FbankOptions()
    for name, value in frame_options.items():
        setattr(options.frame_opts, name, value)
    bank = kaldi_native_fbank.OnlineFbank(options)
    bank.accept_waveform(16000, samples.tolist())
    bank.input_finished()
    return numpy.stack([bank.get_frame(index) for index in range(bank.num_frames_ready)])

def difference(samples, **frame_options):
    return float(numpy.abs(features(samples, **frame_options) - features(samples, **frame_options)).max())

sound = 0.1 * numpy.random.default_rng(0).normal(size=16000)
silence = numpy.zeros(16000)
loud, quiet = difference(sound), difference(silence)
exact = difference(silence, dither=0.0) + difference(sound, dither=0.0)
print(f"largest difference of two runs: in noise {loud:.1e}, in silence {quiet:.2f}, both without dither {exact}")
raise SystemExit(0 if loud > 0 and quiet > 0.5 and exact == 0 else 1)
END
"$folder/venv/bin/python" "$folder/try.py"
