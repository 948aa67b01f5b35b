"""Encoding on one GPU at full size: Whisper large-v2 and BEATs from random weights, in bfloat16.

`python -m benchmarks.gpu_encoders [--batch CLIPS] [--rounds N] [--tiny]`. For both attention kernels of BEATs and clips
of 10 and 30 s: clips/s, × real time, time of each part, share of the peak, memory. The peak is the speed of a large
bfloat16 product measured in the same run, and beside it a dense peak from a datasheet (`--peak-tflops`). `--tiny` runs
small encoders on whatever there is, to see that the program works. Needs no Ray.
"""

import argparse
import statistics
import sys
from collections import defaultdict

import torch

from benchmarks.arithmetic import beats_flop, matrix_speed, timed, whisper_flop
from encoders.audio import SAMPLE_RATE_HZ
from encoders.beats.encoder import BeatsEncoder
from encoders.beats.network import Beats, BeatsConfig
from encoders.clip_encoder import ClipEncoder
from encoders.codecs import quantise
from encoders.features import Kernel
from encoders.tiny import random_weights
from encoders.whisper.encoder import WhisperEncoder
from encoders.whisper.network import WhisperNetwork, WhisperSizes

WHISPER_LARGE_V2 = WhisperSizes(1280, 32, 20, 5120, 80, 1500)
WHISPER_TINY = WhisperSizes(128, 2, 4, 256, 80, 1500)
BEATS_TINY = BeatsConfig(64, 2, 96, 192, 4, 16, 4)
CLIPS = 128
KERNELS: tuple[Kernel, ...] = ("sdpa", "flex")


def build(whisper: WhisperSizes, beats: BeatsConfig, device: str, dtype: torch.dtype) -> dict[Kernel, ClipEncoder]:
    """Return an encoder for each attention kernel, the weights the same."""
    with torch.device("meta"):
        speech_shapes, audio_shapes = WhisperNetwork(whisper).state_dict(), Beats(beats).state_dict()
    speech = WhisperEncoder(whisper, random_weights(speech_shapes, 0), device=device, dtype=dtype)
    weights = random_weights(audio_shapes, 1)
    return {
        kernel: ClipEncoder(speech, BeatsEncoder(beats, weights, device=device, dtype=dtype, attention=kernel))
        for kernel in KERNELS
    }


def measure(
    encoder: ClipEncoder,
    *,
    clips: int,
    seconds: int,
    batch: int,
    rounds: int,
    clip_flop: float,
    peaks: dict[str, float],
) -> str:
    """Return a table row of encoding `clips` clips of noise."""
    device = encoder.device
    generator = torch.Generator().manual_seed(0)
    waves = [0.1 * torch.randn(seconds * SAMPLE_RATE_HZ, generator=generator) for _ in range(clips)]
    encoder.encode(waves, batch_size=batch)  # compiles, and warms up
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    walls, parts = [], defaultdict[str, list[float]](list)
    for _ in range(rounds):
        once: dict[str, float] = {}
        walls.append(timed(lambda: encoder.encode(waves, batch_size=batch, seconds=once)))  # noqa: B023
        for part, value in once.items():
            parts[part].append(value)
    features = encoder.encode(waves[:batch], batch_size=batch)
    quantised = timed(lambda: [quantise(frames, "int8") for clip in features for frames in clip.values()])
    wall = statistics.median(walls)
    cells = [encoder.attention, f"{seconds}", f"{clips / wall:.1f}", f"{clips * seconds / wall:.0f}"]
    cells += [f"{1000 * statistics.median(parts[part]) / clips:.2f}" for part in ("mel", "whisper", "fbank", "beats")]
    cells += [f"{1000 * quantised / len(features):.2f}", f"{clip_flop * clips / wall / 1e12:.1f}"]
    cells += [f"{clip_flop * clips / wall / peak:.1%}" for peak in peaks.values()]
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    return f"| {' | '.join(cells)} | {memory:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Encoding speed on one GPU.")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="dense bfloat16, 989 for an H100 or H200")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.tiny:
        sys.exit("no CUDA device here, so nothing to measure; --tiny tries the program out on the CPU")
    whisper, beats = (WHISPER_TINY, BEATS_TINY) if options.tiny else (WHISPER_LARGE_V2, BeatsConfig())
    clips, lengths = (2, (2,)) if options.tiny else (CLIPS, (10, 30))
    encoders = build(whisper, beats, device, torch.float32 if device == "cpu" else torch.bfloat16)
    size = 512 if options.tiny else 8192
    peaks = {"of the product": matrix_speed(size, device=device, dtype=torch.bfloat16)}
    peaks["of the datasheet"] = options.peak_tflops * 1e12
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, bfloat16 product {peaks['of the product'] / 1e12:.1f} TFLOP/s")

    wave = 0.1 * torch.randn(lengths[0] * SAMPLE_RATE_HZ)
    one, other = (encoder.encode([wave, wave[:SAMPLE_RATE_HZ]])[1]["audio"].float() for encoder in encoders.values())
    print(f"flex against sdpa: largest difference {(one - other).abs().max():.1e}, features' spread {one.std():.2f}")

    columns = ["attention", "clip, s", "clips/s", "× real time", "mel, ms per clip", "whisper", "fbank", "beats"]
    columns += ["int8", "TFLOP/s", *(f"share {name}" for name in peaks), "GiB"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for encoder in encoders.values():
        for seconds in lengths:
            clip_flop = whisper_flop(whisper) + beats_flop(beats, seconds)
            shape = {"clips": clips, "seconds": seconds, "batch": options.batch, "rounds": options.rounds}
            print(measure(encoder, **shape, clip_flop=clip_flop, peaks=peaks), flush=True)


if __name__ == "__main__":
    main()
