"""What a training step costs the plain way and here, and which measure saves how much of it.

`python -m benchmarks.train_step [rounds]`. The plain way encodes every clip in every step, pads micro-batches taken in
random order, and computes logits at every position; then one measure after the other is switched on. Same models, same
examples, one process and thread, the contestants taking turns; medians over rounds. The encoders are to the LLM what
Whisper-large and BEATs are to one of 7 B, but other ratios depend on the sizes, above all the share of the logits; so
the arithmetic of the published sizes stands beside what was measured.
"""

import itertools
import multiprocessing
import platform
import random
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import soundfile
import torch
import transformers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.arithmetic import beats_flop, layers_flop, matrix_speed, timed, whisper_flop
from benchmarks.gpu_train_step import SIZES, Sizes, random_encoder
from encoders.audio import SAMPLE_RATE_HZ
from encoders.beats.network import BeatsConfig
from encoders.codecs import quantise
from encoders.features import Hear, Heard
from encoders.sound.clips import load_clip
from encoders.whisper.network import WhisperSizes
from llm.loading import load_llm
from llm.lora import add_lora
from llm.packing import packed_logits
from llm.prompts import AFTER_AUDIO, BEFORE_AUDIO, PROMPTS
from llm.salmonn import Batch, Salmonn
from llm.settings import LoraSettings
from llm.tiny import write_tiny_llm
from pipelines.batches.batch import make_batch, read_batch, read_texts
from pipelines.batches.example_set import load_examples
from pipelines.batches.micro_batch import count_audio_tokens
from pipelines.batches.order import micro_batches
from pipelines.cache.encoder_recipe import recipe_of
from pipelines.cache.reader import FeatureCache
from pipelines.cache.recipe import write_recipe
from pipelines.cache.shard import EncodedClip, write_shard
from pipelines.manifest.corpora.table import TableConfig, prepare_table
from pipelines.manifest.tables import read_clips
from qformer.aligner import Aligner
from qformer.config import AlignerConfig

CLIP_SECONDS = 30
FRAMES = 1500
MICRO_BATCH = 8
ANSWER_WORDS = (1, 1, 2, 3, 8, 15, 18, 22, 28, 30, 37, 45, 52, 60, 70, 80)  # labels, captions, questions, transcripts
VOCABULARY = 32_000
ALIGNER = AlignerConfig(speech_width=192, audio_width=192, llm_width=512, hidden_width=256, num_heads=4, ffn_width=512)


HERE = Sizes(*(8, 512, 1376, 8), WhisperSizes(192, 3, 4, 768, 80, FRAMES), BeatsConfig(96, 3, 192, 768, 4, 16, 4))
ALL_SIZES = {"here": HERE, "7B": SIZES["7b"], "13B": SIZES["13b"]}


@dataclass(frozen=True)
class Contestant:
    """A way to compute the step."""

    name: str
    cached: bool = True
    packed: bool = True
    target_logits: bool = True
    gradient_checkpointing: bool = False


LADDER = (
    Contestant("plain", cached=False, packed=False, target_logits=False),
    Contestant("+ cached features", packed=False, target_logits=False),
    Contestant("+ packed examples", target_logits=False),
    Contestant("+ logits of targets alone", target_logits=True),
)
CONTESTANTS = (*LADDER, Contestant("and gradient checkpointing", gradient_checkpointing=True))


def write_corpus(folder: Path, seconds: Sequence[float] = (CLIP_SECONDS,) * len(ANSWER_WORDS)) -> None:
    """Write a manifest of clips of noise of these lengths with answers of many lengths, their cache, a tokenizer."""
    rng = np.random.Generator(np.random.PCG64(0))
    lines = ["path,text"]
    for number, words in enumerate(random.Random(0).sample(ANSWER_WORDS, len(ANSWER_WORDS))):
        samples = 0.1 * rng.standard_normal(int(seconds[number] * SAMPLE_RATE_HZ))
        soundfile.write(folder / f"{number}.flac", samples, SAMPLE_RATE_HZ)
        lines.append(f"{number}.flac,{' '.join(['red'] * words)}")
    (folder / "table.csv").write_text("\n".join(lines))
    manifest, cache = str(folder / "manifest"), str(folder / "cache")
    prepare_table(TableConfig(table=str(folder / "table.csv"), out=manifest))
    encoder = random_encoder(HERE)
    recipe = recipe_of(encoder, codec="float16", precision="float32")
    write_recipe(cache, recipe, encoders={"speech": "", "audio": ""}, recorded={})
    clips = list(read_clips(manifest))
    streams = encoder.encode([load_clip(clip.located()) for clip in clips])
    encoded = [
        EncodedClip(clip, {name: quantise(frames, "float16") for name, frames in heard.items()}, length, "")
        for clip, heard, length in zip(clips, streams, seconds, strict=True)
    ]
    write_shard(cache, 0, recipe, encoded)
    write_tiny_llm(["red red red", BEFORE_AUDIO, AFTER_AUDIO, *PROMPTS["asr"]], folder / "llm")


class Step:
    """One step on the corpus: every example once, each clip heard with the silence behind it or by itself."""

    def __init__(self, folder: Path, hear: Hear = "all") -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        llm = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=HERE.width,
                intermediate_size=HERE.ffn_width,
                num_hidden_layers=HERE.layers,
                num_attention_heads=HERE.heads,
            )
        )
        self.model = Salmonn(Aligner(ALIGNER), add_lora(llm, LoraSettings()), load_llm(folder / "llm")[1]).train()
        self.optimizer = torch.optim.AdamW(self.model.trainable_parameters().values())
        self.encoder = random_encoder(HERE)
        self.cache = FeatureCache(str(folder / "cache"))
        manifest = str(folder / "manifest")
        self.heard = Heard(FRAMES, hear)
        self.examples = load_examples(manifest, self.cache, splits=[], tasks=[], max_missing_fraction=0)
        self.clips = {clip.clip_id: clip.located() for clip in read_clips(manifest)}
        self.picked = [(0, index) for index in range(len(self.examples))]
        texts = read_texts(self.examples, self.picked, prompt_seed=0)
        seconds = self.cache.seconds[self.examples.positions]
        audio = count_audio_tokens(self.model, self.heard, seconds)
        self.lengths, without_answers = (
            [
                self.model.count_tokens(question, said, num_audio_tokens=tokens)
                for (question, said), tokens in zip(pairs, audio, strict=True)
            ]
            for pairs in (texts, [(question, "") for question, _ in texts])
        )
        self.num_targets = sum(self.lengths) - sum(without_answers) + len(texts)

    def parts(self, contestant: Contestant) -> list[list[tuple[int, int]]]:
        if contestant.packed:
            return micro_batches(self.picked, self.lengths, size=MICRO_BATCH)
        return [self.picked[first : first + MICRO_BATCH] for first in range(0, len(self.picked), MICRO_BATCH)]

    def run(self, contestant: Contestant) -> None:
        parts = self.parts(contestant)
        with computing(contestant, self.model):
            for part in parts:
                self.model.loss(self.read(part) if contestant.cached else self.encode(part)).total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def flop(self, contestant: Contestant, sizes: Sizes) -> float:
        """Return the operations per example: encoders, and the LLM forward and, without weights' gradients, back."""
        rows = [[self.lengths[index] for _, index in part] for part in self.parts(contestant)]
        if not contestant.packed:
            rows = [[max(row)] * len(row) for row in rows]
        lengths = list(itertools.chain(*rows))
        passes = 3 if contestant.gradient_checkpointing else 2
        ffn_width = 3 * sizes.ffn_width // 2  # Llama's has three matrices instead of two
        layers = passes * sum(layers_flop(sizes.layers, sizes.width, ffn_width, length) for length in lengths)
        logits = self.num_targets if contestant.target_logits else sum(lengths)
        head = 2 * 2 * sizes.width * VOCABULARY * logits
        encoders = 0 if contestant.cached else whisper_flop(sizes.whisper) + beats_flop(sizes.beats, CLIP_SECONDS)
        return (layers + head) / len(lengths) + encoders

    def read(self, part: Sequence[tuple[int, int]]) -> Batch:
        return read_batch(self.examples, self.cache, part, heard=self.heard, prompt_seed=0)

    def encode(self, part: Sequence[tuple[int, int]]) -> Batch:
        rows = self.examples.rows([index for _, index in part])
        streams = self.encoder.encode([load_clip(self.clips[row["clip_id"]]) for row in rows])
        questions, answers = zip(*read_texts(self.examples, part, prompt_seed=0), strict=True)
        return make_batch(streams, questions, answers, heard=self.heard)


@contextmanager
def computing(contestant: Contestant, model: Salmonn) -> Iterator[None]:
    """Let the model compute as the contestant does."""
    if contestant.gradient_checkpointing:
        model.llm.activation_checkpointing_enable()
    if contestant.target_logits:
        yield
    else:
        with patch("llm.salmonn.packed_logits", all_logits if contestant.packed else padded_logits):
            yield
    model.llm.activation_checkpointing_disable()


def all_logits(llm: LlamaForCausalLM, embeds_TD: Tensor, lengths: Sequence[int], columns_N: Tensor) -> Tensor:
    return packed_logits(llm, embeds_TD, lengths, torch.arange(len(embeds_TD)))[columns_N]


def padded_logits(llm: LlamaForCausalLM, embeds_TD: Tensor, lengths: Sequence[int], columns_N: Tensor) -> Tensor:
    """An example to a row, zeros after the shorter ones; causal attention needs no mask for them."""
    rows_BLD = pad_sequence(list(embeds_TD.split(list(lengths))), batch_first=True)
    logits_BLV: Tensor = llm(inputs_embeds=rows_BLD, use_cache=False).logits
    places = torch.cat([row * rows_BLD.shape[1] + torch.arange(length) for row, length in enumerate(lengths)])
    return logits_BLV.flatten(0, 1)[places[columns_N]]


def peak_megabytes(folder: Path, contestant: Contestant, hear: Hear = "all") -> float:
    """Return what a first step adds at its peak to a process that has loaded everything (Linux)."""
    step = Step(folder, hear)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is forgotten
    before = _status_megabytes("VmRSS")
    step.run(contestant)
    return _status_megabytes("VmHWM") - before


def _status_megabytes(field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder)
        step = Step(folder)
        times: dict[str, list[float]] = {contestant.name: [] for contestant in CONTESTANTS}
        for _ in range(rounds):
            for contestant in CONTESTANTS:
                times[contestant.name].append(timed(lambda: step.run(contestant)))  # noqa: B023
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            peaks = {contestant.name: pool.apply(peak_megabytes, (folder, contestant)) for contestant in CONTESTANTS}
        report(step, times, peaks)


def report(step: Step, times: dict[str, list[float]], peaks: dict[str, float]) -> None:
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    speed = matrix_speed(2048) / 1e9
    print(f"{platform.machine()}, one thread, {versions}, a large product {speed:.0f} GFLOP/s")
    padded = [[step.lengths[index] for _, index in part] for part in step.parts(LADDER[0])]
    rows = [max(row) * len(row) for row in padded]
    print(
        f"{len(step.lengths)} examples of {CLIP_SECONDS} s, {min(step.lengths)} to {max(step.lengths)} tokens, "
        f"{step.num_targets} targets; real tokens {sum(step.lengths) / sum(rows):.1%} when padded, 100 % packed"
    )
    medians = {name: statistics.median(values) for name, values in times.items()}
    plain, ours = times["plain"], medians[LADDER[-1].name]
    columns = [
        "",
        "s",
        "of plain",
        "share of the gain",
        *(f"TFLOP per example, {size}" for size in ALL_SIZES),
        "peak MB",
    ]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    before = medians["plain"]
    for contestant in CONTESTANTS:
        median = medians[contestant.name]
        ratio = statistics.median(mine / theirs for mine, theirs in zip(times[contestant.name], plain, strict=True))
        share = f"{(before - median) / (medians['plain'] - ours):.0%}" if contestant in LADDER[1:] else ""
        tera = [f"{step.flop(contestant, size) / 1e12:.4g}" for size in ALL_SIZES.values()]
        cells = [contestant.name, f"{median:.2f}", f"{ratio:.2f}", share, *tera, f"{peaks[contestant.name]:.0f}"]
        print(f"| {' | '.join(cells)} |")
        before = median
    ratios = {name: step.flop(LADDER[0], size) / step.flop(LADDER[-1], size) for name, size in ALL_SIZES.items()}
    print("plain / ours in arithmetic:", ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()))
    measured = statistics.median(a / b for a, b in zip(plain, times[LADDER[-1].name], strict=True))
    print(f"plain / ours measured: {measured:.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
