"""How many questions a second the server answers: one at a time, and sixteen clients at a time.

`python -m benchmarks.serving [requests] [alone] [memory_requests] [llm]` starts `salmonn serve` on this machine over
two runs over one tiny LLM, which answers with 1 to 80 tokens, beams 4, float32, two threads. `requests` (1000) mixed
questions of 16 clients, about 40 sounds, of both runs, half of them streamed, each must get the text that the same
question gets alone in this process. `alone` (100) of them are asked one after the other first, for the throughput to
compare with. Each sound was heard once before, so that both find its features and no encoder takes part. Then
`memory_requests` (5000) more show whether the server's memory grows. `llm` is the folder of another LLM than the tiny
one.
"""

import base64
import io
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import soundfile
import torch
from openai import OpenAI
from torch import Tensor

from benchmarks.answering import TEXTS, verb
from llm.loading import load_llm
from llm.tiny import write_tiny_llm
from pipelines.inference import Listener

BEAMS, MOST_TOKENS, CLIENTS, SOUNDS, THREADS = 4, 80, 16, 40, 2
ENDING = 1.25
"""How much longer than other tokens' the end token's output row is: enough that answers end at all lengths."""
PORT = 8765
TOKEN = "of the benchmark"
QUESTIONS = ("What can be heard?", "Write down what is said.", "Is it one sound or several?", "What is it like?")


@dataclass(frozen=True)
class Asked:
    run: str
    sound: int
    question: str
    is_streamed: bool


@dataclass(frozen=True)
class Timed:
    text: str
    first_seconds: float
    whole_seconds: float


def main(requests: int, alone: int, memory_requests: int, *, llm: str) -> None:
    torch.set_num_threads(THREADS)
    folder = Path(tempfile.mkdtemp(prefix="serving-"))
    try:
        prepare(folder, Path(llm) if llm else write_llm(folder / "llm"))
        sounds = [sound_of(number) for number in range(SOUNDS)]
        chance = random.Random(0)
        asked = [draw(chance) for _ in range(requests)]
        expected = expect(folder, sounds, asked)
        with served(folder) as process:
            client = OpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key=TOKEN, max_retries=0, timeout=600)
            for sound in range(SOUNDS):
                ask(client, sounds, Asked("one", sound, QUESTIONS[0], False))
            one = run("one at a time", client, sounds, asked[:alone], expected, clients=1)
            many = run(f"{CLIENTS} clients", client, sounds, asked, expected, clients=CLIENTS)
            print(f"\nthroughput {many / one:.2f} times that of one at a time")
            watch_memory(client, sounds, asked, expected, process, memory_requests)
    finally:
        shutil.rmtree(folder)


def write_llm(folder: Path) -> Path:
    """Write a tiny LLM that ends its answers."""
    write_tiny_llm(TEXTS, folder, vocab_size=2048)
    model, tokenizer = load_llm(folder)
    with torch.no_grad():
        head: Tensor = model.lm_head.weight
        head[tokenizer.eos_token_id] *= ENDING
    model.save_pretrained(folder)
    return folder


def prepare(folder: Path, llm: Path) -> None:
    """Make two runs of one step over one LLM."""
    (folder / "audio").mkdir()
    (folder / "audio" / "a.wav").write_bytes(sound_of(0))
    (folder / "table.csv").write_text("path,text,task,split\na.wav,a sound,asr,train\n")
    here = Path.cwd()
    data = [f"manifest={folder}/m", f"cache={folder}/c"]
    verb(here, "prepare", "table", f"table={folder}/table.csv", f"audio_root={folder}/audio", f"out={folder}/m")
    verb(here, "extract", *data, "whisper=tiny", "beats=tiny")
    sizes = ["qformer.hidden_width=128", "qformer.num_heads=2", "qformer.ffn_width=256"]
    for number, name in enumerate(("one", "two")):
        steps = ["steps=1", "batch_examples=1", "optim.warmup_steps=0", f"seed={number}", "optim.lr=0.01"]
        verb(here, "train", *data, f"run={folder}/{name}", f"llm={llm}", *sizes, *steps)


def sound_of(number: int) -> bytes:
    noise = np.random.Generator(np.random.PCG64(number))
    wave = noise.standard_normal(int(16_000 * (2 + 8 * noise.random()))).cumsum()
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.5 * wave / np.abs(wave).max(), 16_000, format="FLAC")
    return buffer.getvalue()


def draw(chance: random.Random) -> Asked:
    run, question = chance.choice(("one", "two")), chance.choice(QUESTIONS)
    return Asked(run, chance.randrange(SOUNDS), question, chance.random() < 0.5)


def expect(folder: Path, sounds: Sequence[bytes], asked: Sequence[Asked]) -> dict[tuple[str, int, str], str]:
    """Return what each question gets alone."""
    expected = {}
    listeners = {name: Listener.from_run(str(folder / name)) for name in ("one", "two")}
    samples = [soundfile.read(io.BytesIO(sound), dtype="float32") for sound in sounds]
    heard = {(name, sound): listeners[name].features(samples[sound]) for name in listeners for sound in range(SOUNDS)}
    for one in asked:
        key = (one.run, one.sound, one.question)
        if key not in expected:
            answer = listeners[one.run].answer(
                heard[one.run, one.sound], one.question, num_beams=BEAMS, max_new_tokens=MOST_TOKENS
            )
            expected[key] = answer.text
    print(f"\n{len(expected)} different questions, {len(set(expected.values()))} different answers")
    return expected


@contextmanager
def served(folder: Path) -> Iterator[psutil.Process]:
    """Start the server and yield the process that has the models."""
    words = [f"run=[{folder}/one,{folder}/two]", f"port={PORT}", f"num_beams={BEAMS}", f"threads={THREADS}"]
    words += [f"max_new_tokens={MOST_TOKENS}", f"batch_examples={CLIENTS}", f"kept_clips={SOUNDS * 2}"]
    command = [sys.executable, "-m", "pipelines", "serve", *words]
    environment = {**os.environ, "SALMONN_TOKEN": TOKEN}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        for line in server.stdout:
            if line.startswith("page: "):
                break
        children = psutil.Process(server.pid).children(recursive=True)
        try:
            yield next(child for child in children if "ServeReplica" in " ".join(child.cmdline()))
        finally:
            server.send_signal(signal.SIGTERM)


def ask(client: OpenAI, sounds: Sequence[bytes], asked: Asked) -> Timed:
    data = base64.b64encode(sounds[asked.sound]).decode()
    parts: list[Any] = [
        {"type": "input_audio", "input_audio": {"data": data, "format": "flac"}},
        {"type": "text", "text": asked.question},
    ]
    messages: list[Any] = [{"role": "user", "content": parts}]
    start, first, texts = time.monotonic(), 0.0, []
    if asked.is_streamed:
        for chunk in client.chat.completions.create(model=asked.run, messages=messages, stream=True):
            first = first or time.monotonic() - start
            texts += [choice.delta.content or "" for choice in chunk.choices]
        return Timed("".join(texts), first, time.monotonic() - start)
    whole = client.chat.completions.create(model=asked.run, messages=messages)
    spent = time.monotonic() - start
    return Timed(whole.choices[0].message.content or "", spent, spent)


def run(
    name: str,
    client: OpenAI,
    sounds: Sequence[bytes],
    asked: Sequence[Asked],
    expected: dict[tuple[str, int, str], str],
    *,
    clients: int,
) -> float:
    """Ask all of it, check every text, print the times, and return questions per second."""
    start = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        timed = list(pool.map(lambda one: ask(client, sounds, one), asked))
    seconds = time.monotonic() - start
    wrong = [
        one for one, got in zip(asked, timed, strict=True) if got.text != expected[one.run, one.sound, one.question]
    ]
    if wrong:
        raise SystemExit(f"{len(wrong)} of {len(asked)} answers differ, such as that to {wrong[0]}")
    first = [got.first_seconds for one, got in zip(asked, timed, strict=True) if one.is_streamed]
    whole = [got.whole_seconds for got in timed]
    print(
        f"{name}: {len(asked)} questions in {seconds:.1f} s, {len(asked) / seconds:.2f} a second; "
        f"first text {spread(first)}; whole {spread(whole)}",
        flush=True,
    )
    return len(asked) / seconds


def spread(seconds: Sequence[float]) -> str:
    return f"p50 {statistics.median(seconds):.2f} s, p95 {float(np.quantile(seconds, 0.95)):.2f} s"


def watch_memory(
    client: OpenAI,
    sounds: Sequence[bytes],
    asked: Sequence[Asked],
    expected: dict[tuple[str, int, str], str],
    process: psutil.Process,
    requests: int,
) -> None:
    """Ask on, and print the resident memory of the models' process after each fifth."""
    seen = [process.memory_info().rss / 1e6]
    for _ in range(5 if requests else 0):
        part = [asked[place % len(asked)] for place in range(requests // 5)]
        run("more", client, sounds, part, expected, clients=CLIENTS)
        seen.append(process.memory_info().rss / 1e6)
    print(f"resident MB: {json.dumps([round(megabytes) for megabytes in seen])}")


if __name__ == "__main__":
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, ray {ray.__version__}")
    given = [int(word) for word in sys.argv[1:4]]
    main(*(given + [1000, 100, 5000][len(given) :]), llm=sys.argv[4] if len(sys.argv) > 4 else "")
