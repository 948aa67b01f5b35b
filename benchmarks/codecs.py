"""What a codec saves and what it costs: bytes per hour of audio, fidelity, and the held-out score of training on it.

`python -m benchmarks.codecs DATA [seeds]`: DATA holds recordings, `labels.jsonl` that says what they are, and Whisper's
encoder in `weights/whisper-tiny.en-encoder`. Each clip is encoded once and passes through every codec; then the small
Q-Former and LoRA of `configs/tiny.yaml` learn spoken digits from what each codec gives back, each speaker held out in
turn. The same seed gives every codec the same first weights and the same batches, so differences are paired. A linear
readout, which has no seed, tells digits and, each fold held out in turn, sounds. Letters: T frames, C channels.
"""

import json
import math
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from encoders.audio import SAMPLE_RATE_HZ, Segment
from encoders.clip_encoder import load_clip_encoder
from encoders.codecs import dequantise, measure_fidelity, quantise
from encoders.features import FRAME_RATE_HZ, Fidelity
from encoders.sound.clips import load_clip
from llm.loading import load_llm
from llm.lora import add_lora
from llm.prompts import AFTER_AUDIO, BEFORE_AUDIO
from llm.salmonn import Batch, Salmonn
from llm.settings import LoraSettings
from llm.tiny import write_tiny_llm
from pipelines.batches.order import global_batch
from pipelines.training.config import OptimConfig
from pipelines.training.optim import learning_rate, make_optimizer
from qformer.aligner import Aligner
from qformer.config import AlignerConfig

STEPS, BATCH = 300, 8
BLOCK = 32
OPTIM = OptimConfig(lr=2e-3, min_lr=1e-4, warmup_lr=1e-4, warmup_steps=30)


@dataclass(frozen=True)
class Task:
    """What is learnt from a folder of the recordings, and whose recordings are held out in turn."""

    name: str
    folder: str
    answer_key: str
    group_key: str
    heard_seconds: float


DIGITS = Task("digits", "fsdd", "text", "speaker", 1.5)
TASKS = (DIGITS, Task("sounds", "esc10", "label", "fold", 5.0))
QUESTION = "Which digit is spoken?"


def block_int8(frames_TC: Tensor) -> tuple[Tensor, int]:
    """Return frames that went through int8 with a float16 scale per 32 neighbouring channels of a frame; bytes."""
    blocks = frames_TC.unflatten(1, (-1, BLOCK))
    scales = (blocks.abs().amax(-1, keepdim=True) / 127).half().float()
    steps = (blocks / scales.clamp(min=torch.finfo(torch.float16).tiny)).round().clamp(-127, 127)
    return (steps * scales).flatten(1), frames_TC.numel() + 2 * scales.numel()


def stored(codec: str) -> Callable[[Tensor], tuple[Tensor, int]]:
    """Return the function that sends frames through a codec of the caches: what comes back, bytes."""

    def through(frames_TC: Tensor) -> tuple[Tensor, int]:
        arrays = quantise(frames_TC, codec)  # type: ignore[arg-type]  # one of Codec
        return dequantise(arrays, codec), sum(array.nbytes for array in arrays.values())  # type: ignore[arg-type]

    return through


CODECS: Mapping[str, Callable[[Tensor], tuple[Tensor, int]]] = {
    "float32": lambda frames_TC: (frames_TC, frames_TC.nbytes),
    "float16": stored("float16"),
    "bfloat16": lambda frames_TC: (frames_TC.bfloat16().float(), frames_TC.nbytes // 2),
    "int8, scale per channel": stored("int8"),
    "int8, scale per block": block_int8,
}
TRIMMED, WHOLE = ", trimmed", "float32, all 30 s"
LEARNT = ("float32", "float16", "int8, scale per channel", "int8, scale per block", "float32" + TRIMMED)
"""What the Q-Former learns from; trimmed: after a clip's end it hears zeros, as after a short BEATs stream."""


@dataclass
class Heard:
    """A clip: its label, whose it is, and by codec its first frames."""

    answer: str
    group: str
    frames: int
    streams: dict[str, Tensor]


@dataclass
class Tally:
    """What a codec took and gave back over a corpus."""

    seconds: float = 0.0
    nbytes: int = 0
    trimmed_nbytes: int = 0
    fidelities: list[Fidelity] = field(default_factory=list)


def encode(data: Path, folders: Mapping[str, float]) -> tuple[dict[str, list[Heard]], dict[str, dict[str, Tally]]]:
    """Encode the clips of some folders, each kept as long as heard; return them and tallies by codec."""
    encoder = load_clip_encoder(whisper=str(data / "weights/whisper-tiny.en-encoder"), beats="none")
    clips: dict[str, list[Heard]] = defaultdict(list)
    tallies: dict[str, dict[str, Tally]] = defaultdict(lambda: defaultdict(Tally))
    for line in (data / "labels.jsonl").read_text().splitlines():
        about = json.loads(line)
        folder = about["path"].partition("/")[0]
        if folder not in folders:
            continue
        wave = load_clip([Segment(str(data / about["path"]), 0.0, about["duration"])])
        frames_TC = encoder.encode([wave])[0]["speech"]
        seconds = len(wave) / SAMPLE_RATE_HZ
        num_frames, heard = math.ceil(seconds * FRAME_RATE_HZ), round(folders[folder] * FRAME_RATE_HZ)
        task = next((task for task in TASKS if task.folder == folder), None)
        streams = {}
        for codec, through in CODECS.items():
            restored_TC, nbytes = through(frames_TC)
            tally = tallies[folder][codec]
            tally.seconds, tally.nbytes = tally.seconds + seconds, tally.nbytes + nbytes
            tally.trimmed_nbytes += through(frames_TC[:num_frames])[1]
            tally.fidelities.append(measure_fidelity(frames_TC, restored_TC))
            streams[codec] = restored_TC[:heard].clone()
        streams[WHOLE] = frames_TC.mean(0, keepdim=True)  # all that the readout needs
        if task:
            whose = str(about[task.group_key])
            clips[folder].append(Heard(str(about[task.answer_key]), whose, min(num_frames, heard), streams))
    return clips, tallies


class TrimmedAligner(nn.Module):
    """An aligner that is told where each clip's speech frames end: where zeros begin."""

    def __init__(self, aligner: Aligner) -> None:
        super().__init__()
        self.aligner = aligner

    def forward(self, speech_BTC: Tensor, audio_BTC: None, *, audio_frames: None) -> Tensor:
        """Return the aligner's tokens."""
        tokens: Tensor = self.aligner(speech_BTC, None, speech_frames=(speech_BTC != 0).any(-1).sum(1))
        return tokens


def learn(clips: Sequence[Heard], variant: str, group: str, seed: int, llm: Path) -> tuple[float, float]:
    """Train on all but a group; return the share of its clips answered rightly and the loss per answer token."""
    torch.manual_seed(seed)
    codec, trimmed = variant.removesuffix(TRIMMED), variant.endswith(TRIMMED)
    width = clips[0].streams[codec].shape[1]
    language_model, tokenizer = load_llm(llm)
    config = AlignerConfig(
        speech_width=width,
        audio_width=None,
        llm_width=language_model.config.hidden_size,
        hidden_width=192,
        num_heads=4,
        ffn_width=384,
        dropout=0.0,
    )
    aligner = Aligner(config)
    model = Salmonn(
        TrimmedAligner(aligner) if trimmed else aligner, add_lora(language_model, LoraSettings(dropout=0.0)), tokenizer
    )

    def batch(some: Sequence[Heard]) -> Batch:
        streams = [clip.streams[codec].clone() for clip in some]
        if trimmed:
            for clip, frames_TC in zip(some, streams, strict=True):
                frames_TC[clip.frames :] = 0
        return Batch(torch.stack(streams), None, None, [QUESTION] * len(some), [clip.answer for clip in some])

    seen = [clip for clip in clips if clip.group != group]
    held_out = batch([clip for clip in clips if clip.group == group])
    optimizer = make_optimizer(model.trainable_parameters(), OPTIM)
    for step in range(STEPS):
        picked = global_batch(step, batch_examples=BATCH, num_examples=len(seen), seed=seed)
        model.loss(batch([seen[index] for _, index in picked])).mean.backward()
        nn.utils.clip_grad_norm_(model.trainable_parameters().values(), OPTIM.clip_norm)
        for settings in optimizer.param_groups:
            settings["lr"] = learning_rate(step, STEPS, OPTIM)
        optimizer.step()
        optimizer.zero_grad()
    answers = [answer.text for answer in model.eval().generate(held_out, num_beams=1, max_new_tokens=8)]
    with torch.no_grad():
        loss = float(model.loss(held_out).mean)
    return float(np.mean([a == b for a, b in zip(answers, held_out.answers, strict=True)])), loss


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for row in (columns, ["---"] * len(columns), *rows):
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def print_tallies(tallies: Mapping[str, Mapping[str, Tally]]) -> None:
    columns = ["recordings", "codec", "MB per hour", "trimmed", "dB mean", "dB worst clip", "cosine", "worst frame"]
    rows = []
    for folder, by_codec in tallies.items():
        for codec, tally in by_codec.items():
            hours, found = tally.seconds / 3600, tally.fidelities
            snrs = [fidelity.snr_db for fidelity in found]
            cosine = statistics.mean(fidelity.cosine for fidelity in found)
            worst = min(fidelity.worst_cosine for fidelity in found)
            nbytes = [f"{nbytes / 1e6 / hours:,.0f}" for nbytes in (tally.nbytes, tally.trimmed_nbytes)]
            numbers = [f"{statistics.mean(snrs):.1f}", f"{min(snrs):.1f}", f"{cosine:.6f}", f"{worst:.5f}"]
            rows.append([folder, codec, *nbytes, *numbers])
    print_table(columns, rows)


def print_compression(frames: Sequence[Tensor]) -> None:
    """Print what zstd saves of stored arrays, and at which speed, one thread."""
    shuffled = [frames_TC.half().numpy().view(np.uint8).reshape(-1, 2).T.tobytes() for frames_TC in frames]
    kinds = {
        "float16": [frames_TC.half().numpy().tobytes() for frames_TC in frames],
        "float16, bytes shuffled": shuffled,
        "int8": [quantise(frames_TC, "int8")[""].numpy().tobytes() for frames_TC in frames],
    }
    zstd, rows = pa.Codec("zstd", 1), []
    for kind, raw in kinds.items():
        total, start = sum(map(len, raw)), time.perf_counter()
        packed = [zstd.compress(data, asbytes=True) for data in raw]
        between = time.perf_counter()
        for data, plain in zip(packed, raw, strict=True):
            zstd.decompress(data, len(plain))
        seconds = between - start, time.perf_counter() - between
        rows.append([kind, f"{sum(map(len, packed)) / total:.3f}", *(f"{total / 1e6 / took:,.0f}" for took in seconds)])
    print_table(["zstd 1 of", "of the bytes", "MB/s packing", "MB/s unpacking"], rows)


def read_out(clips: Sequence[Heard], variant: str, group: str) -> tuple[float, float]:
    """Fit answers to the mean frame by ridge regression on all but a group; return its share right and its error."""
    codec, trimmed = variant.removesuffix(TRIMMED), variant.endswith(TRIMMED)
    means = [clip.streams[codec][: clip.frames if trimmed else None].double().mean(0) for clip in clips]
    answers = sorted({clip.answer for clip in clips})
    targets = torch.eye(len(answers), dtype=torch.float64)[[answers.index(clip.answer) for clip in clips]]
    held_out = torch.tensor([clip.group == group for clip in clips])
    inputs = torch.stack(means)
    inputs = (inputs - inputs[~held_out].mean(0)) / inputs[~held_out].std(0)
    seen = inputs[~held_out]
    shrunk = seen.T @ seen + len(seen) * torch.eye(seen.shape[1], dtype=torch.float64)
    centre = targets[~held_out].mean(0)
    scores = inputs[held_out] @ torch.linalg.solve(shrunk, seen.T @ (targets[~held_out] - centre)) + centre
    right = scores.argmax(1) == targets[held_out].argmax(1)
    return float(right.double().mean()), float((scores - targets[held_out]).square().mean())


def print_scores(name: str, measure: str, found: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Print (share right, measure) of every variant's runs, and their differences to float32 paired by run."""
    rows = []
    for variant, runs in found.items():
        row = [name, variant]
        for place, digits in ((0, 3), (1, 6)):
            ours, base = ([run[place] for run in some] for some in (runs, found["float32"]))
            gaps = [a - b for a, b in zip(ours, base, strict=True)]
            error = statistics.stdev(gaps) / len(gaps) ** 0.5
            row += [f"{statistics.mean(ours):.{digits}f}", f"{statistics.mean(gaps):+.{digits}f} ± {error:.{digits}f}"]
        rows.append(row)
    print_table([f"{len(found['float32'])} runs", "codec", "right", "to float32", measure, "to float32"], rows)


def main() -> None:
    """Print the tables; progress goes to stderr."""
    if len(sys.argv) < 2:
        raise SystemExit("usage: python -m benchmarks.codecs DATA [seeds]")
    torch.set_num_threads(1)
    data, seeds = Path(sys.argv[1]), range(int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    clips, tallies = encode(data, {task.folder: task.heard_seconds for task in TASKS} | {"librispeech": 1.0})
    print_tallies(tallies)
    print_compression([clip.streams["float32"] for clip in clips["esc10"]])
    for task in TASKS:
        heard = clips[task.folder]
        groups = sorted({clip.group for clip in heard})
        variants = [*CODECS, *(f"{codec}{TRIMMED}" for codec in CODECS), WHOLE]
        read = {variant: [read_out(heard, variant, group) for group in groups] for variant in variants}
        print_scores(f"{task.name}, linear readout", "squared error", read)
    digits, learnt = clips[DIGITS.folder], defaultdict(list)
    runs = [(group, seed) for seed in seeds for group in sorted({clip.group for clip in digits})]
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_llm([QUESTION, BEFORE_AUDIO, AFTER_AUDIO, *(clip.answer for clip in digits)], folder)
        for group, seed in runs:
            for variant in LEARNT:
                learnt[variant].append(learn(digits, variant, group, seed, Path(folder)))
                right, loss = learnt[variant][-1]
                print(f"{group} held out, seed {seed}, {variant}: {right:.3f}, {loss:.4f}", file=sys.stderr, flush=True)
    print_scores(f"digits, Q-Former and LoRA, {STEPS} steps", "nats per token", learnt)


if __name__ == "__main__":
    main()
