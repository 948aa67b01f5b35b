#!/usr/bin/env bash
# PyAV 18.1.0 (FFmpeg 8.1.2) and soundfile 0.14.0 (libsndfile 1.2.2), run on 2026-11-28.
#
# A WAV may be written with its numbers the other way round, highest byte first; it then begins with RIFX instead of
# RIFF. FFmpeg reads the headers of such a file rightly, so that rate, channels and length are as they should be. It
# then reads the samples lowest byte first: a quiet tone becomes loud noise, without an error or a warning. Of floats it
# says that they are not implemented. libsndfile reads all of them.
#
# It matters to whoever converts old recordings with ffmpeg. What helps: look for RIFX before, or convert with sox or
# soundfile.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check soundfile==0.14.0 numpy==2.4.1 av==18.1.0
cat >"$folder/try.py" <<'END'
import io
import av, numpy, soundfile

tone = 0.01 * numpy.sin(numpy.arange(16_000) / 10)
changed = 0
for subtype, width in (("PCM_16", 16), ("PCM_24", 32)):
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 16_000, 1, format="WAV", subtype=subtype, endian="BIG") as writer:
        writer.write(tone)
    data = file.getvalue()
    right = soundfile.read(io.BytesIO(data))[0]
    with av.open(io.BytesIO(data)) as container:
        codec = container.streams.audio[0].codec_context.name
        samples = numpy.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)]) / 2.0 ** (width - 1)
    print(f"{data[:4]} {subtype}: loudest of {len(right)} samples by soundfile {abs(right).max():.3f}, ", end="")
    print(f"of {len(samples)} by FFmpeg ({codec}) {abs(samples).max():.3f}")
    changed += len(samples) != len(tone) or abs(samples).max() < 0.5 or abs(right).max() > 0.02
raise SystemExit(changed)
END
"$folder/venv/bin/python" "$folder/try.py"
