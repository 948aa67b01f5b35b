"""A training step on one GPU at full size: Llama of 7 B or 13 B in bfloat16 with LoRA, behind the full aligner.

`python -m benchmarks.gpu_train_step [--llm 7b|13b] [--examples N] [--rounds N] [--trials N] [--tiny]`. All weights and
features are random; clips are 30 s long, answers as long as those of mixed tasks. For cached features, the same with
gradient checkpointing, Whisper large-v2 and BEATs in every step, and the trials of a sweep by turns over one LLM: time,
tokens/s, share of the peak, memory; then after how many epochs extraction has paid for itself, and what a step spends
most of its time on. The peak is the speed of a large bfloat16 product measured in the same run.
`--tiny` runs small models on whatever there is, to see that the program works. Needs no Ray.
"""

import argparse
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from functools import partial

import torch
import transformers
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from benchmarks.arithmetic import beats_flop, matrix_speed, timed, whisper_flop
from encoders.audio import SAMPLE_RATE_HZ
from encoders.beats.encoder import BeatsEncoder
from encoders.beats.network import Beats, BeatsConfig, count_patches
from encoders.clip_encoder import ClipEncoder
from encoders.tiny import random_weights
from encoders.whisper.encoder import WhisperEncoder
from encoders.whisper.network import WhisperNetwork, WhisperSizes
from llm.loading import load_llm, share_llm
from llm.lora import add_lora
from llm.packing import require_packing
from llm.prompts import AFTER_AUDIO, BEFORE_AUDIO, PROMPTS
from llm.salmonn import Batch, Salmonn
from llm.settings import LoraSettings
from llm.tiny import write_tiny_llm
from qformer.aligner import Aligner
from qformer.config import AlignerConfig, QFormerConfig

SPEECH_FRAMES, AUDIO_TOKENS = 1500, 88
ANSWER_WORDS = (1, 30, 80, 3, 18, 52, 8, 37)  # of a label, a transcript, a long one, …
QUESTION = PROMPTS["asr"][0]
WHISPER_LARGE_V2 = WhisperSizes(1280, 32, 20, 5120, 80, SPEECH_FRAMES)


@dataclass(frozen=True)
class Sizes:
    """An LLM and what is before it, which is as published unless given."""

    layers: int
    width: int
    ffn_width: int
    heads: int
    whisper: WhisperSizes = WHISPER_LARGE_V2
    beats: BeatsConfig = field(default_factory=BeatsConfig)
    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    clip_seconds: int = 30


SIZES = {
    "7b": Sizes(32, 4096, 11008, 32),
    "13b": Sizes(40, 5120, 13824, 40),
    "tiny": Sizes(
        *(2, 64, 128, 4),
        WhisperSizes(128, 2, 4, 256, 80, SPEECH_FRAMES),
        BeatsConfig(64, 2, 96, 192, 4, 16, 4),
        QFormerConfig(hidden_width=48, ffn_width=96),
        clip_seconds=2,
    ),
}


def random_encoder(sizes: Sizes, device: str = "cpu", dtype: torch.dtype = torch.float32) -> ClipEncoder:
    """Return encoders of random weights."""
    with torch.device("meta"):
        speech, audio = WhisperNetwork(sizes.whisper).state_dict(), Beats(sizes.beats).state_dict()
    return ClipEncoder(
        WhisperEncoder(sizes.whisper, random_weights(speech, 0), device=device, dtype=dtype),
        BeatsEncoder(sizes.beats, random_weights(audio, 1), device=device, dtype=dtype),
    )


def build_llm(sizes: Sizes, device: str) -> PreTrainedModel:
    """Return a frozen LLM of random weights on the device."""
    config = LlamaConfig(
        hidden_size=sizes.width,
        intermediate_size=sizes.ffn_width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
    )
    with torch.device(device):
        llm: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]  # the library's
    return llm.requires_grad_(False)


def build_model(sizes: Sizes, device: str, llm: PreTrainedModel) -> Salmonn:
    """Return a model of random weights over an LLM that others may use too, ready to train."""
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_llm(["red red red", BEFORE_AUDIO, AFTER_AUDIO, QUESTION], folder)
        tokenizer = load_llm(folder)[1]
    with torch.device(device):
        speech_width, audio_width = sizes.whisper.d_model, sizes.beats.encoder_embed_dim
        widths = {"speech_width": speech_width, "audio_width": audio_width, "llm_width": sizes.width}
        aligner = Aligner(AlignerConfig(**widths, **vars(sizes.qformer)))
    model = Salmonn(aligner, add_lora(share_llm(llm), LoraSettings()), tokenizer)
    require_packing(model.llm)
    return model.train()


def cached_batch(sizes: Sizes, examples: int) -> Batch:
    """Return examples as they come from a cache: on the host, in float32."""
    questions = [QUESTION] * examples
    answers = [" ".join(["red"] * ANSWER_WORDS[number % len(ANSWER_WORDS)]) for number in range(examples)]
    speech = torch.randn(examples, SPEECH_FRAMES, sizes.whisper.d_model)
    audio = torch.randn(examples, count_patches(100 * sizes.clip_seconds - 2), sizes.beats.encoder_embed_dim)
    return Batch(speech, audio, None, questions, answers)


def encoded_batch(encoder: ClipEncoder, sizes: Sizes, cached: Batch) -> Batch:
    """Return the same examples, heard on the spot."""
    waves = [0.1 * torch.randn(sizes.clip_seconds * SAMPLE_RATE_HZ) for _ in cached.questions]
    streams = encoder.encode(waves, batch_size=len(waves))
    speech, audio = (torch.stack([clip[name] for clip in streams]) for name in ("speech", "audio"))
    return Batch(speech, audio, None, cached.questions, cached.answers)


class Step:
    """Forward, backward and update on a batch."""

    def __init__(self, model: Salmonn) -> None:
        self.model = model
        self.parameters = list(model.trainable_parameters().values())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=3e-5)

    def run(self, batch: Batch) -> None:
        self.model.loss(batch.to(self.parameters[0].device)).mean.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description="A training step on one GPU.")
    parser.add_argument("--llm", choices=("7b", "13b"), default="7b")
    parser.add_argument("--examples", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.tiny:
        sys.exit("no CUDA device here, so nothing to measure; --tiny tries the program out on the CPU")
    sizes = SIZES["tiny" if options.tiny else options.llm]
    torch.set_num_threads(1)  # the work is the device's
    llm = build_llm(sizes, device)
    model, cached = build_model(sizes, device, llm), cached_batch(sizes, options.examples)
    encoder = random_encoder(sizes, device, torch.bfloat16)
    steps, peak = [Step(model)], matrix_speed(512 if options.tiny else 8192, device=device, dtype=torch.bfloat16)
    with FlopCounterMode(display=False) as counter:
        steps[0].run(cached)
    clip_flop = whisper_flop(sizes.whisper) + beats_flop(sizes.beats, sizes.clip_seconds)
    trained_flop, encoded_flop = counter.get_total_flops(), options.examples * clip_flop
    lengths = [
        model.count_tokens(*texts, num_audio_tokens=AUDIO_TOKENS)
        for texts in zip(cached.questions, cached.answers, strict=True)
    ]

    def measure(name: str, *, online: bool = False) -> float:
        """Print a row and return the seconds of a step."""

        def once(number: int) -> None:
            steps[number % len(steps)].run(encoded_batch(encoder, sizes, cached) if online else cached)

        walls = []
        for number in range(options.rounds + len(steps)):
            if number == len(steps) and device == "cuda":  # the first of each warmed up
                torch.cuda.reset_peak_memory_stats()
            walls.append(timed(partial(once, number)))
        wall = statistics.median(walls[len(steps) :])
        rate = (trained_flop + online * encoded_flop) / wall
        memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
        cells = [f"{1000 * wall:.0f}", f"{sum(lengths) / wall:.0f}", f"{rate / 1e12:.1f}", f"{rate / peak:.1%}"]
        print(f"| {name} | {' | '.join(cells)} | {memory:.1f} |", flush=True)
        return wall

    machine = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{machine}, torch {torch.__version__}, transformers {transformers.__version__}")
    print(
        f"bfloat16 product {peak / 1e12:.2g} TFLOP/s; {len(lengths)} examples of {min(lengths)}-{max(lengths)} tokens"
    )
    print("| step | ms | tokens/s | TFLOP/s | of the product | GiB, all models |\n|---|---|---|---|---|---|")
    saved = -measure("cached features")
    model.llm.activation_checkpointing_enable()
    measure("cached, gradient checkpointing")
    model.llm.activation_checkpointing_disable()
    saved += measure("encoders in every step", online=True)
    encoding = statistics.median(timed(lambda: encoded_batch(encoder, sizes, cached)) for _ in range(options.rounds))
    copying = statistics.median(timed(lambda: cached.to(device)) for _ in range(options.rounds))
    steps += [Step(build_model(sizes, device, llm)) for _ in range(options.trials - 1)]
    measure(f"cached features, {options.trials} trials by turns over one LLM")
    print(f"of a cached step {1000 * copying:.0f} ms copy features to the device")
    print(f"extraction {1000 * encoding:.0f} ms per step's clips, saved {1000 * saved:.0f} ms per step: ", end="")
    print(f"paid for after {encoding / saved:.2f} epochs" if saved > 0 else "nothing saved in this run")
    with profile() as profiler:
        steps[0].run(cached)
    order = "self_cuda_time_total" if device == "cuda" else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=order, row_limit=15, max_name_column_width=60))


if __name__ == "__main__":
    main()
