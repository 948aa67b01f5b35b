#!/usr/bin/env bash
# PyAV 18.1.0 (FFmpeg), run on 2026-11-27.
#
# Sound of web videos is AAC: in .m4a, or copied out of it as .aac, bit for bit the same packets. One would expect the
# same samples. An AAC encoder puts 1,024 samples of start-up before the sound. The MP4 container says that they are to
# be skipped, and the plain .aac stream has no place for that. So the sound of the .aac file comes 1,024 samples late,
# 64 ms at 16 kHz, and the file is longer.
#
# It matters to frame labels and to segments cut by time, when one copy of a corpus is .m4a and the other .aac. What
# helps: decode once from the container that the corpus came in, and keep FLAC.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.1
cat >"$folder/try.py" <<'END'
import io
import av, numpy

samples = numpy.zeros((1, 16 * 1024), numpy.float32)
samples[0, 8000:8008] = 0.8
mp4, adts = io.BytesIO(), io.BytesIO()
with av.open(mp4, "w", format="mp4") as output:
    stream = output.add_stream("aac", rate=16000, layout="mono")
    for start in range(0, samples.shape[1], 1024):
        frame = av.AudioFrame.from_ndarray(samples[:, start : start + 1024].copy(), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, start
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))

packets = {}
with av.open(io.BytesIO(mp4.getvalue())) as source, av.open(adts, "w", format="adts") as output:
    copy = output.add_stream_from_template(source.streams.audio[0])
    packets["mp4"] = []
    for packet in source.demux(audio=0):
        if packet.size:
            packets["mp4"].append(bytes(packet))
            packet.stream = copy
            output.mux(packet)
with av.open(io.BytesIO(adts.getvalue())) as source:  # 7 bytes of header stand before each packet
    packets["aac"] = [bytes(packet)[7:] for packet in source.demux(audio=0) if packet.size]

def click(data):
    with av.open(io.BytesIO(data)) as source:
        return int(numpy.abs(numpy.concatenate([frame.to_ndarray()[0] for frame in source.decode(audio=0)])).argmax())

at_mp4, at_adts = click(mp4.getvalue()), click(adts.getvalue())
same = packets["mp4"] == packets["aac"]
print(f"the click written at sample 8,000 peaks at {at_mp4} in .m4a, at {at_adts} in .aac; the same packets: {same}")
raise SystemExit(0 if same and at_adts - at_mp4 == 1024 else 1)
END
"$folder/venv/bin/python" "$folder/try.py"
