"""How fast features are extracted: this project, the plain peer, and the floor under both.

`python -m benchmarks.encoders [--recordings FOLDER] [--rounds N] [--clips N]`. The peer is Hugging Face's feature
extractor and Whisper encoder and speechbrain's BEATs, clip by clip; the floor is the bare forward pass of our networks
on spectra made beforehand, and the arithmetic at the speed of a large matrix product. Same weights (random, Whisper
base and full-size BEATs), same clips, taking turns group by group in one process with one thread; medians over rounds.
"""

import argparse
import multiprocessing
import platform
import re
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from speechbrain.lobes.models.beats import BEATs as PeerBeats
from torch import Tensor
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from benchmarks.arithmetic import beats_flop, matrix_speed, timed, whisper_flop
from cluster.unit_queue import Attempt
from encoders.audio import SAMPLE_RATE_HZ, AudioError, Segment
from encoders.beats.encoder import BeatsEncoder
from encoders.beats.network import SWITCHES, Beats, BeatsConfig, count_patches
from encoders.clip_encoder import ClipEncoder, load_clip_encoder
from encoders.sound.clips import load_clip
from encoders.tiny import random_weights
from encoders.whisper.network import WhisperSizes
from pipelines.cache.encoder_recipe import recipe_of
from pipelines.cache.plan import extend_plan, read_units
from pipelines.cache.recipe import write_recipe
from pipelines.extraction.messages import WorkerConfig
from pipelines.extraction.worker import ExtractWorker
from pipelines.manifest.corpora.table import TableConfig, prepare_table
from pipelines.manifest.tables import read_clips

GROUP_CLIPS = 4
WHISPER_BASE = WhisperSizes(512, 6, 8, 2048, 80, 1500)
DURATIONS = (5, 10, 30)
Encode = Callable[[Sequence[Tensor]], object]


def write_weights(folder: Path) -> tuple[str, str]:
    """Write random weights in the published layouts, Whisper base and BEATs, for all contestants to read."""
    ids: dict[str, Any] = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
    decoder: dict[str, Any] = {"decoder_layers": 1, "decoder_attention_heads": 8, "decoder_ffn_dim": 8, "vocab_size": 8}
    torch.manual_seed(0)
    WhisperModel(WhisperConfig(**asdict(WHISPER_BASE), **decoder, **ids)).save_pretrained(folder / "whisper")
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder / "whisper")  # type: ignore[no-untyped-call]
    with torch.device("meta"):
        shapes = Beats(BeatsConfig()).state_dict()
    model = random_weights(shapes, seed=0)
    table = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
    model |= {table.format(layer): model[table.format(0)] for layer in range(1, BeatsConfig().encoder_layers)}
    no_dropout = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout", "dropout_input"), 0.0)
    cfg = {**asdict(BeatsConfig()), **SWITCHES, **no_dropout, "encoder_layerdrop": 0.0, "finetuned_model": False}
    cfg |= {"layer_wise_gradient_decay_ratio": 0.6}
    torch.save({"cfg": cfg, "model": model}, folder / "beats.pt")
    return str(folder / "whisper"), str(folder / "beats.pt")


class Peer:
    """The plain way: each library as it comes, clip by clip."""

    def __init__(self, whisper: str, beats: str) -> None:
        self.extractor = WhisperFeatureExtractor.from_pretrained(whisper)
        self.whisper = WhisperModel.from_pretrained(whisper).encoder.eval()  # type: ignore[no-untyped-call]
        self.beats = PeerBeats(beats).eval()

    def log_mel(self, wave: Tensor) -> Tensor:
        mel: Tensor = self.extractor(wave.numpy(), sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt").input_features
        return mel

    @torch.inference_mode()
    def encode(self, waves: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        return [
            {"speech": self.whisper(self.log_mel(wave)).last_hidden_state[0], "audio": self.hear(wave)}
            for wave in waves
        ]

    @torch.inference_mode()
    def hear(self, wave: Tensor) -> Tensor:
        frames: Tensor = self.beats(wave.unsqueeze(0), torch.ones(1))[0]
        return frames[0] if frames.ndim == 3 else frames


def recordings_of(folder: str, work: Path, count: int) -> list[str]:
    """Return `count` recordings of spread lengths: from a folder, or noise where none is given."""
    if folder:
        lengths: dict[str, int] = {}
        for path in sorted(Path(folder).rglob("*")):
            if path.suffix in (".flac", ".wav", ".ogg", ".mp3"):
                try:
                    lengths[str(path.resolve())] = len(load_clip([Segment(str(path))]))
                except AudioError:
                    continue
        by_length = sorted(lengths, key=lambda path: lengths[path])
        return [by_length[round(place * (len(by_length) - 1))] for place in np.linspace(0, 1, count)]
    rng = np.random.Generator(np.random.PCG64(0))
    paths = [str(work / f"{number}.flac") for number in range(count)]
    for place, seconds in zip(paths, np.geomspace(1, 30, count), strict=True):
        soundfile.write(place, 0.1 * rng.standard_normal(round(seconds * SAMPLE_RATE_HZ)), SAMPLE_RATE_HZ)
    return paths


def compare_parts(encoder: ClipEncoder, peer: Peer, rounds: int) -> None:
    """Print log-mel and BEATs by length of the clip, ours beside the peer's."""
    audio = encoder.audio
    assert isinstance(audio, BeatsEncoder)
    print("| part, length | ours, s | peer, s | peer / ours | arithmetic, s |\n|---|---|---|---|---|")
    speed = matrix_speed(2048)
    for seconds in DURATIONS:
        wave = 0.1 * torch.randn(seconds * SAMPLE_RATE_HZ, generator=torch.Generator().manual_seed(0))
        floor = beats_flop(BeatsConfig(), seconds) / speed
        compare(
            f"log-mel, {seconds} s", encoder.speech.log_mel, lambda waves: peer.log_mel(waves[0]), wave, 10 * rounds
        )
        compare(f"BEATs, {seconds} s", audio.encode, lambda waves: peer.hear(waves[0]), wave, rounds, floor=floor)


def compare(name: str, ours: Encode, theirs: Encode, wave: Tensor, rounds: int, *, floor: float = 0.0) -> None:
    pairs = [(timed(lambda: ours([wave])), timed(lambda: theirs([wave]))) for _ in range(rounds)]
    mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(theirs_s / ours_s for ours_s, theirs_s in pairs)
    print(f"| {name} | {mine:.4f} | {other:.4f} | {ratio:.2f} | {floor:.2f} |", flush=True)


def bare_forward(encoder: ClipEncoder, waves: Sequence[Tensor]) -> Callable[[], object]:
    """Return the forward passes alone, in the batches that `encode` makes, on spectra made beforehand."""
    audio = encoder.audio
    assert isinstance(audio, BeatsEncoder)
    mels = [encoder.speech.log_mel([wave]) for wave in waves]
    banks = audio.filter_banks.batch(waves)
    batches = list(encoder._batches([count_patches(len(bank)) for bank in banks], 8))

    def run() -> None:
        for mel in mels:
            encoder.speech.encode_mel(mel)
        for batch in batches:
            audio.encode_prepared([banks[clip] for clip in batch])

    return run


def compare_whole(encoder: ClipEncoder, peer: Peer, waves: Sequence[Tensor], rounds: int) -> None:
    """Print waves to features: ours, the peer's, and the bare forward passes."""
    order = np.random.Generator(np.random.PCG64(1)).permutation(len(waves))
    groups = [[waves[clip] for clip in order[first::GROUP_CLIPS]] for first in range(GROUP_CLIPS)]
    differences: dict[str, float] = defaultdict(float)
    for ours, theirs in zip(encoder.encode(groups[0]), peer.encode(groups[0]), strict=True):
        for stream, frames in ours.items():
            differences[stream] = max(differences[stream], (frames - theirs[stream]).abs().max().item())
    print("Largest difference of a feature:", ", ".join(f"{name} {value:.1e}" for name, value in differences.items()))

    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        total: dict[str, float] = defaultdict(float)
        for group in groups:
            bare = bare_forward(encoder, group)
            total["ours"] += timed(lambda: encoder.encode(group))  # noqa: B023
            total["peer"] += timed(lambda: peer.encode(group))  # noqa: B023
            total["bare forward"] += timed(bare)
        for name, seconds in total.items():
            times[name].append(seconds)
    audio_seconds = sum(len(wave) for wave in waves) / SAMPLE_RATE_HZ
    speed = matrix_speed(2048)
    speech = len(waves) * whisper_flop(WHISPER_BASE)
    arithmetic = (speech + sum(beats_flop(BeatsConfig(), len(wave) / SAMPLE_RATE_HZ) for wave in waves)) / speed
    print(f"| {len(waves)} clips, {audio_seconds:.0f} s of audio | s | clips/s | × real time |\n|---|---|---|---|")
    rows = [(name, statistics.median(values)) for name, values in times.items()]
    for name, seconds in (*rows, (f"arithmetic at {speed / 1e9:.0f} GFLOP/s", arithmetic)):
        print(f"| {name} | {seconds:.2f} | {len(waves) / seconds:.2f} | {audio_seconds / seconds:.1f} |")
    for name in ("peer", "bare forward"):
        pairs = zip(times[name], times["ours"], strict=True)
        print(f"{name} / ours: {statistics.median(other / ours for other, ours in pairs):.2f}")


def show_shares(whisper: str, beats: str, recordings: Sequence[str], work: Path) -> None:
    """Print where the time of a unit goes, from recordings to a committed shard."""
    (work / "table.csv").write_text("path,text\n" + "".join(f"{path[1:]},sound\n" for path in recordings))
    prepare_table(TableConfig(table=str(work / "table.csv"), out=str(work / "manifest"), audio_root="/"))
    cache = str(work / "cache")
    recipe = recipe_of(load_clip_encoder(whisper=whisper, beats=beats), codec="float16", precision="float32")
    write_recipe(cache, recipe, encoders={"speech": whisper, "audio": beats}, recorded={})
    extend_plan(cache, read_clips(str(work / "manifest")), recipe=recipe, shard_nbytes=10**10)
    (unit,) = read_units(cache)
    stats = ExtractWorker(
        WorkerConfig(cache=cache, whisper=whisper, beats=beats, recipe=recipe, device="cpu", threads=1, batch_clips=8)
    ).run(unit, Attempt())
    decode = timed(lambda: [load_clip(clip.located()) for clip in unit.clips])
    rows = {"decode (in threads, beside the rest)": decode, **stats.parts}
    print(f"| part of a unit ({stats.seconds:.2f} s) | s | share |\n|---|---|---|")
    for part, seconds in rows.items():
        print(f"| {part} | {seconds:.3f} | {seconds / stats.seconds:.1%} |")


def peak_megabytes(contestant: str, whisper: str, beats: str) -> float:
    """Return what encoding one clip of 30 s adds at its peak to a process that has loaded the encoders (Linux)."""
    torch.set_num_threads(1)
    encode: Encode = (
        Peer(whisper, beats).encode if contestant == "peer" else load_clip_encoder(whisper=whisper, beats=beats).encode
    )
    encode([0.1 * torch.randn(SAMPLE_RATE_HZ)])
    Path("/proc/self/clear_refs").write_text("5")  # the peak is forgotten
    before = _status_megabytes("VmRSS")
    encode([0.1 * torch.randn(30 * SAMPLE_RATE_HZ)])
    return _status_megabytes("VmHWM") - before


def _status_megabytes(field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description="Encoding speed: ours, the plain peer, the floor.")
    parser.add_argument("--recordings", default="", help="folder of recordings; without it, noise of 1 to 30 s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        whisper, beats = write_weights(work)
        encoder, peer = load_clip_encoder(whisper=whisper, beats=beats), Peer(whisper, beats)
        print(f"{platform.machine()}, one thread, torch {torch.__version__}\n")
        compare_parts(encoder, peer, options.rounds)
        recordings = recordings_of(options.recordings, work, options.clips)
        compare_whole(encoder, peer, [load_clip([Segment(path)]) for path in recordings], options.rounds)
        show_shares(whisper, beats, recordings, work)
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            for contestant in ("ours", "peer"):
                peak = pool.apply(peak_megabytes, (contestant, whisper, beats))
                print(f"peak memory of a 30 s clip above the loaded weights, {contestant}: {peak:.0f} MB")


if __name__ == "__main__":
    main()
