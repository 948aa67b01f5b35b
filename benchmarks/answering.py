"""How many held-out examples a second `evaluate` answers: an earlier checkout's, this one's, and the plain way.

`python -m benchmarks.answering CHECKOUT [rounds] [examples]`. CHECKOUT is another version of this project with a
`.venv` of its own; it makes the corpus, the cache and the run, which this version reads too. `-`: none. The
language model is a random Llama made to end its answers after 0 to 80 tokens, some 35 in the mean; the references are
its own answers, as long as a trained model's would be. Beams 4, float32; CHECKOUT with two threads, here two workers of
one thread. The plain way encodes each recording and calls transformers' `generate`, one example at a time, with two
threads; it answers some of the examples, picked evenly among all, from the longest answer to the shortest. All give the
same texts, or the benchmark fails. Seconds are those of answering, from the first feature read to the last answer kept;
starting Python, Ray and the models is shown beside them.
"""

import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import soundfile
import torch
import transformers

from encoders.audio import Segment
from encoders.sound.clips import load_clip
from llm.loading import load_llm
from llm.prompts import question_for
from llm.tiny import write_tiny_llm
from pipelines import storage
from pipelines.batches.batch import make_batch, read_questions
from pipelines.cache.reader import FeatureCache
from pipelines.inference.hearing import load_hearing
from pipelines.runs.checkpoint import load_run

WORDS = [f"{first}{second}" for first in "bcdfghklmnprst" for second in ("a", "ei", "ou", "ine", "ust", "all")]
TEXTS = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]
BEAMS, MOST_TOKENS, PLAIN_EXAMPLES = 4, 80, 24
MEAN_TOKENS, TRIED_CLIPS, TRIES = 35, 16, 8


def main(checkout: Path | None, rounds: int, examples: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="answering-"))
    try:
        make_llm(folder / "llm")
        write_corpus(folder, ["-"] * examples)
        maker = checkout or Path.cwd()
        prepare(maker, folder)
        end_answers(folder)
        here(folder, 0)
        answers = read_answers(folder / "here-0")
        write_corpus(folder, [answers[f"clip-{number}.wav"] or "-" for number in range(examples)])
        shutil.rmtree(folder / "manifest")
        prepare_manifest(maker, folder)
        lengths = pq.read_table(folder / "here-0" / "answers.parquet")["tokens"].to_pylist()
        print(f"{examples} examples, answers of {min(lengths)} to {max(lengths)} tokens, mean {np.mean(lengths):.1f}")
        names = ["here", "plain", *["earlier"] * (checkout is not None)]
        seconds: dict[str, list[float]] = {name: [] for name in names}
        whole: dict[str, list[float]] = {name: [] for name in seconds if name != "plain"}
        for number in range(1, rounds + 1):
            turns = {"here": here(folder, number)}
            if checkout:
                turns["earlier"] = earlier(checkout, folder, number)
            for name, (spent, total) in turns.items():
                seconds[name].append(examples / spent)
                whole[name].append(total)
            seconds["plain"].append(plain(folder, answers))
        if checkout and earlier_answers(folder / "earlier-1") != answers:
            raise SystemExit("the texts differ")
        if read_answers(folder / "here-1") != answers:
            raise SystemExit("the texts differ")
        median = {name: statistics.median(found) for name, found in seconds.items()}
        print(f"{platform.machine()}, torch {torch.__version__}, transformers {transformers.__version__}")
        print("\n| | examples/s, median (each round) | whole command, s |\n|---|---|---|")
        for name, found in seconds.items():
            each = ", ".join(f"{rate:.2f}" for rate in found)
            print(f"| {name} | {median[name]:.2f} ({each}) | {whole_of(whole, name)} |")
        ratios = (f"here / {name} {median['here'] / found:.2f}" for name, found in median.items() if name != "here")
        print("\n" + ", ".join(ratios))
    finally:
        shutil.rmtree(folder)


def whole_of(whole: dict[str, list[float]], name: str) -> str:
    return f"{statistics.median(whole[name]):.0f}" if name in whole else "—"


def make_llm(folder: Path) -> None:
    write_tiny_llm(TEXTS, folder, width=512, num_layers=8, num_heads=8, vocab_size=4096)


def end_answers(folder: Path) -> None:
    """Scale the end token's row of the LLM's output, which a random LLM hardly ever chooses, so that answers end.

    How much depends on run and question: it is searched for until their mean length is about `MEAN_TOKENS`.
    """
    torch.set_num_threads(2)
    cache = FeatureCache(str(folder / "cache"))
    run = load_run(str(folder / "run"))
    batch = read_questions(cache, range(TRIED_CLIPS), [question_for("asr")] * TRIED_CLIPS, [], heard=run.spec.heard)
    llm, tokenizer = load_llm(folder / "llm")
    rows = [model.get_output_embeddings().weight[tokenizer.eos_token_id] for model in (llm, run.model.llm)]
    before = rows[0].detach().clone()

    @torch.no_grad()
    def mean_length(factor: float) -> float:
        for row in rows:
            row.copy_(factor * before)
        answers = run.model.generate(batch, num_beams=BEAMS, max_new_tokens=MOST_TOKENS)
        return float(np.mean([answer.num_tokens for answer in answers]))

    sign = min((-1.0, 1.0), key=lambda sign: mean_length(8 * sign))
    low, high = 0.0, 8.0
    for _ in range(TRIES):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_length(sign * middle) > MEAN_TOKENS else (low, middle)
    mean_length(sign * high)
    llm.save_pretrained(folder / "llm")


def write_corpus(folder: Path, answers: list[str]) -> None:
    (folder / "audio").mkdir(exist_ok=True)
    rows = []
    for number, answer in enumerate(answers):
        noise = np.random.Generator(np.random.PCG64(number))
        seconds = 2 + 14 * noise.random()
        wave = noise.standard_normal(int(16_000 * seconds)).cumsum()
        name = f"clip-{number}.wav"
        soundfile.write(folder / "audio" / name, 0.5 * wave / np.abs(wave).max(), 16_000)
        rows.append({"path": name, "text": answer, "task": "asr", "split": "test"})
    (folder / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def verb(checkout: Path, *words: str) -> str:
    command = [str(checkout / ".venv/bin/python"), "-m", "pipelines", *words]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    return done.stdout + done.stderr


def prepare_manifest(checkout: Path, folder: Path) -> None:
    given = [f"table={folder}/table.jsonl", f"audio_root={folder}/audio", f"out={folder}/manifest"]
    verb(checkout, "prepare", "table", *given)


def prepare(checkout: Path, folder: Path) -> None:
    """Make manifest, cache and a run of one step, whose weights are as good as random."""
    prepare_manifest(checkout, folder)
    given = [f"manifest={folder}/manifest", f"cache={folder}/cache"]
    verb(checkout, "extract", *given, "whisper=tiny", "beats=tiny", "threads=2")
    sizes = ["qformer.hidden_width=128", "qformer.num_heads=2", "qformer.ffn_width=256"]
    steps = ["steps=1", "batch_examples=2", "splits=[test]", "optim.warmup_steps=0"]
    verb(checkout, "train", *given, f"run={folder}/run", f"llm={folder}/llm", *sizes, *steps)


def evaluate_words(folder: Path, name: str) -> list[str]:
    given = [f"manifest={folder}/manifest", f"cache={folder}/cache", f"run={folder}/run", f"out={folder / name}"]
    return ["evaluate", *given, f"num_beams={BEAMS}", f"max_new_tokens={MOST_TOKENS}"]


def earlier(checkout: Path, folder: Path, number: int) -> tuple[float, float]:
    """Return seconds of answering, as its last line of progress says, and of the whole command."""
    start = time.monotonic()
    said = verb(checkout, *evaluate_words(folder, f"earlier-{number}"), "threads=2")
    total = time.monotonic() - start
    return float(said.rsplit("examples in ", 1)[1].split(" s", 1)[0]), total


def here(folder: Path, number: int) -> tuple[float, float]:
    shutil.rmtree(folder / "run" / "answers", ignore_errors=True)
    start = time.monotonic()
    verb(Path.cwd(), *evaluate_words(folder, f"here-{number}"), "threads=1", "workers=2")
    total = time.monotonic() - start
    units = list((folder / "run" / "answers").rglob("*.parquet"))
    ends = [path.stat().st_mtime for path in units]
    starts = [end - sum(pq.read_table(path)["seconds"].to_pylist()) for path, end in zip(units, ends, strict=True)]
    return max(ends) - min(starts), total


def plain(folder: Path, expected: dict[str, str]) -> float:
    """Return examples per second, one at a time, through the encoders."""
    torch.set_num_threads(2)
    run = load_run(str(folder / "run"))
    hear = load_hearing(run.spec, str(folder / "run"), device="cpu")
    model, question = run.model, asked(folder)
    numbers = sorted(range(len(expected)), key=lambda number: -len(expected[f"clip-{number}.wav"]))
    picked = numbers[:: -(-len(numbers) // PLAIN_EXAMPLES)]
    start = time.monotonic()
    for number in picked:
        wave = load_clip(
            [Segment(str(folder / "audio" / f"clip-{number}.wav"))], channel="first", open_file=storage.open_file
        )
        batch = make_batch(hear([wave]), [question], [], heard=run.spec.heard)
        with torch.no_grad():
            embeds, _ = model.embed_prompts(batch)
            ids = model.llm.generate(
                inputs_embeds=embeds,
                attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
                num_beams=BEAMS,
                max_new_tokens=MOST_TOKENS,
                do_sample=False,
                eos_token_id=model.tokenizer.eos_token_id,
                pad_token_id=model.tokenizer.eos_token_id,
            )
        text = model.tokenizer.batch_decode(ids, skip_special_tokens=True)[0].strip()
        if text != expected[f"clip-{number}.wav"]:
            raise SystemExit(f"clip {number}: {text!r} the plain way, {expected[f'clip-{number}.wav']!r} here")
    return len(picked) / (time.monotonic() - start)


def asked(folder: Path) -> str:
    rows = pq.read_table(folder / "here-1" / "answers.parquet", columns=["question"])["question"]
    question: str = rows[0].as_py()
    return question


def recordings(folder: Path) -> dict[str, str]:
    rows = pq.read_table(folder / "manifest" / "clips.parquet", columns=["clip_id", "segments"]).to_pylist()
    return {row["clip_id"]: row["segments"][0]["recording"] for row in rows}


def read_answers(out: Path) -> dict[str, str]:
    names = recordings(out.parent)
    rows = pq.read_table(out / "answers.parquet", columns=["clip_id", "answer"]).to_pylist()
    return {names[row["clip_id"]]: row["answer"] for row in rows}


def earlier_answers(out: Path) -> dict[str, str]:
    names = recordings(out.parent)
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    return {names[line["clip_id"]]: line["answer"] for line in lines}


if __name__ == "__main__":
    given = sys.argv[1:]
    other = None if given[0] == "-" else Path(given[0]).absolute()
    main(other, *(int(given[i]) if len(given) > i else default for i, default in ((1, 3), (2, 96))))
