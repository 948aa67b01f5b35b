"""Sound over 30 s: what `ask` of ten minutes takes of memory, and what a border between two pieces does to frames.

`python -m benchmarks.long_audio memory [WHISPER]`: `ask` of 30 s, 3 and 10 minutes at 44.1 kHz in stereo, each in a
process of its own, about a run that has learnt two steps. Windows of a second, so that the tiny LLM holds ten minutes.

`python -m benchmarks.long_audio borders WHISPER FOLDER…`: utterances over 12 s are cut in two, in the middle or at the
quietest step of 160 ms within a second of it, and their frames are compared with those of the whole utterance.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from encoders.audio import SAMPLE_RATE_HZ, Segment
from encoders.clip_encoder import ClipEncoder, load_clip_encoder
from encoders.features import FRAME_RATE_HZ, SAMPLES_PER_FRAME, STEP_SAMPLES
from encoders.sound.clips import load_clip
from encoders.sound.sound_file import probe_seconds
from pipelines.cli import main as salmonn

RATE_HZ = 44_100
ASKED_SECONDS = (30, 180, 600)
LEAST_SECONDS = 12.0
REACH_SECONDS = 1.0
NEAR_SECONDS = (0.1, 0.5, 1.0, 2.0, 4.0)
ASK = r"""
import re, sys, time
from pathlib import Path
from pipelines.cli import main
start = time.perf_counter()
code = main(sys.argv[1:])
peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
print(f"peak {peak:.0f} MB, {time.perf_counter() - start:.1f} s", file=sys.stderr)
sys.exit(code)
"""
"""The peak is the process's own; `ru_maxrss` is that of the process that started it, where that is higher."""


def measure_memory(whisper: str) -> None:
    """Print the peak memory of `ask` by the length of the sound."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        noise = np.random.default_rng(0)
        for seconds in ASKED_SECONDS:
            samples = noise.uniform(-0.1, 0.1, (seconds * RATE_HZ, 2)).astype(np.float32)
            soundfile.write(folder / f"{seconds}.wav", samples, RATE_HZ)
        (folder / "table.csv").write_text(f"path,text\n{ASKED_SECONDS[0]}.wav,noise\n")
        places = [f"manifest={folder}/m", f"cache={folder}/c"]
        own = ["hear=clip", "heard_seconds=30", "qformer.window_seconds=1", "qformer.stride_seconds=1"]
        for words in (
            ["prepare", "table", f"table={folder}/table.csv", f"audio_root={folder}", f"out={folder}/m"],
            ["extract", *places, f"whisper={whisper}", "beats=tiny", "workers=1"],
            ["train", "tiny", *places, f"run={folder}/run", *own, "llm=tiny", "steps=2", "batch_examples=1"],
        ):
            if salmonn(words):
                sys.exit(f"salmonn {words[0]} failed")
        asked = ["ask", f"run={folder}/run", "question=What is it?", "max_new_tokens=4", "num_beams=1"]
        for seconds in ASKED_SECONDS:
            words = [*asked, f"audio={folder}/{seconds}.wav", f"heard_seconds={seconds}"]
            done = subprocess.run([sys.executable, "-c", ASK, *words], capture_output=True, text=True, check=True)
            print(f"{seconds} s: {done.stderr.strip().splitlines()[-1]}")


def measure_borders(whisper: str, *folders: str) -> None:
    """Print how far frames near a border are from those of the whole, for both ways to choose the border."""
    encoder = load_clip_encoder(whisper=whisper, beats="none")
    paths = [
        str(path) for folder in folders for path in sorted(Path(folder).rglob("*")) if path.suffix in (".flac", ".wav")
    ]
    waves = [load_clip([Segment(path)]) for path in paths if LEAST_SECONDS < probe_seconds(path) <= 30]
    found: dict[str, list[list[float]]] = {"in the middle": [], "at the quietest": []}
    for wave in waves:
        middle = len(wave) // 2 // STEP_SAMPLES
        reach = round(REACH_SECONDS * SAMPLE_RATE_HZ / STEP_SAMPLES)
        steps = range(middle - reach, middle + reach + 1)
        quietest = min(steps, key=lambda step: _loudness(wave, step))
        (whole,) = encoder.encode([wave])
        for name, step in zip(found, (middle, quietest), strict=True):
            found[name].append(_distances(encoder, wave, step, whole["speech"]))
    print(f"{len(waves)} utterances; 1 - cosine of Whisper's frames with the whole utterance's, mean over frames")
    print("| border | " + " | ".join(f"within {seconds:g} s" for seconds in NEAR_SECONDS) + " | all |")
    for name, rows in found.items():
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in np.mean(rows, axis=0)) + " |")


def _loudness(wave: Tensor, step: int) -> float:
    place = step * STEP_SAMPLES
    return float(wave[place - STEP_SAMPLES // 2 : place + STEP_SAMPLES // 2].square().mean())


def _distances(encoder: ClipEncoder, wave: Tensor, step: int, whole_TC: Tensor) -> list[float]:
    place = step * STEP_SAMPLES
    border, frames = place // SAMPLES_PER_FRAME, -(-len(wave) // SAMPLES_PER_FRAME)
    left, right = (clip["speech"] for clip in encoder.encode([wave[:place], wave[place:]]))
    joined_TC = torch.cat([left[:border], right[: frames - border]])
    distance_T = 1 - cosine_similarity(joined_TC, whole_TC[:frames], dim=1)
    reaches = [round(seconds * FRAME_RATE_HZ) for seconds in NEAR_SECONDS]
    near = [float(distance_T[border - reach : border + reach].mean()) for reach in reaches]
    return [*near, float(distance_T.mean())]


def main(words: Sequence[str]) -> None:
    torch.set_num_threads(2)
    if words[0] == "memory":
        measure_memory(*words[1:] or ["tiny"])
    else:
        measure_borders(*words[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
