"""Seconds and memory to score stored answers again: made-up answers to every task of the table, in equal shares.

`python -m benchmarks.rescoring [answers] [processes]`, 1,000,000 on two by default, each a task at a time. Making the
answers is not counted as time; they are counted as memory. Java is not used.
"""

import multiprocessing
import os
import random
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

from pipelines.inference.scoring.answers import Answered
from pipelines.inference.scoring.scores import score_task
from pipelines.inference.scoring.tasks import TASKS

COMMON = """
the of and to a in is that for it was on as with he be by at from his this not are or have an had they which one you
were her all she there would their we him been has when who will more no if out so said what up its about into than
them can only other new some could time these two may then do first any my now such like our over man me even most
made after also did many before must through back years where much your way well down should because each just those
people mr how too little state good very make world still own see men work long get here between both life being
"""
SYLLABLES = [first + second for first in "bdfgklmnprst" for second in ("a", "e", "i", "o", "u", "an", "er", "ing")]
CHARACTERS = [chr(code) for code in range(0x4E00, 0x4E00 + 1500)]
KANA = [chr(code) for code in range(0x3042, 0x3094)]
PHONES = """
AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH
"""

Text = Callable[[], str]


def vocabulary(draw: random.Random) -> list[str]:
    """Return 10,000 words, the most common ones of English first."""
    common = COMMON.split()
    rare = {"".join(draw.choices(SYLLABLES, k=draw.randint(2, 4))) for _ in range(20_000)} - set(common)
    return common + sorted(rare)[: 10_000 - len(common)]


def from_words(draw: random.Random, words: Sequence[str], few: int, many: int, joint: str = " ") -> Text:
    """Return a maker of texts of so many words, each as frequent as its rank says (Zipf)."""
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    drawn: Iterator[str] = iter(())

    def text() -> str:
        nonlocal drawn
        found: list[str] = []
        wanted = draw.randint(few, many)
        while len(found) < wanted:
            word = next(drawn, None)
            if word is None:
                drawn = iter(draw.choices(words, weights, k=100_000))
            else:
                found.append(word)
        return joint.join(found)

    return text


def makers(draw: random.Random) -> dict[str, tuple[Text, int]]:
    """Return task -> (a maker of its texts, references of an answer)."""
    words = vocabulary(draw)
    short, sentence = from_words(draw, words, 1, 3), from_words(draw, words, 10, 25)
    found: dict[str, tuple[Text, int]] = dict.fromkeys(TASKS, (short, 1))
    speaker = from_words(draw, words, 6, 16)
    return found | {
        "asr": (sentence, 1),
        "overlapped_speech_recognition": (lambda: f"{speaker()}\n{speaker()}", 1),
        "en2de": (lambda: sentence().capitalize() + ".", 1),
        "en2zh": (from_words(draw, CHARACTERS, 10, 30, ""), 1),
        "en2ja": (from_words(draw, KANA, 10, 30, ""), 1),
        "audiocaption": (lambda: speaker().capitalize() + ".", 5),
        "music_caption": (lambda: f"{sentence().capitalize()}. {sentence().capitalize()}.", 1),
        "phone_recognition": (from_words(draw, PHONES.split(), 20, 50), 1),
        "emotion_recognition": (lambda: draw.choice(["happy", "sad", "angry", "neutral"]), 1),
        "gender_recognition": (lambda: draw.choice(["male", "female"]), 1),
        "speaker_verification": (lambda: draw.choice(["yes", "no"]), 1),
        "keywords": (lambda: ", ".join(short() for _ in range(3)), 1),
        "audio_story": (from_words(draw, words, 30, 120), 1),
    }


def answers(task: str, count: int, seed: int) -> Iterator[Answered]:
    """Yield so many answers to a task, in which a tenth of the words of the first reference are missing."""
    draw = random.Random(seed)
    text, references = makers(draw)[task]
    for place in range(count):
        known = tuple(text() for _ in range(references))
        answer = "".join(part for part in known[0] if part.isspace() or draw.random() > 0.02)
        yield Answered(clip_id=f"{place:032x}", corpus="made", question="?", references=known, answer=answer)


def rescore(task: str, count: int, seed: int) -> tuple[str, float, float]:
    """Return what the scores are, and the seconds and processor seconds that they took."""
    made = list(answers(task, count, seed))
    start, used = time.perf_counter(), time.process_time()
    scores = score_task(task, made).scores
    values = ", ".join(f"{one.name} {one.value:.3f}" for one in scores if one.value is not None)
    return values, time.perf_counter() - start, time.process_time() - used


def watch_memory(processes: Sequence[int], stop: threading.Event) -> float:
    """Return the most MiB that the processes held at once."""
    most = 0
    while not stop.wait(0.05):
        pages = [int(Path(f"/proc/{process}/statm").read_text().split()[1]) for process in processes]
        most = max(most, sum(pages) * resource.getpagesize())
    return most / 2**20


def main() -> None:
    total = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    os.environ["PATH"] = ""  # without Java
    processes = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    stop, used, by_process = threading.Event(), 0.0, [0.0] * processes
    with ProcessPoolExecutor(processes) as pool, ThreadPoolExecutor(1) as watcher:
        jobs = [pool.submit(rescore, task, total // len(TASKS), seed) for seed, task in enumerate(TASKS)]
        memory = watcher.submit(watch_memory, [child.pid or 0 for child in multiprocessing.active_children()], stop)
        for task, job in zip(TASKS, jobs, strict=True):
            values, seconds, processor = job.result()
            used += processor
            by_process[by_process.index(min(by_process))] += seconds  # as the pool hands them out
            print(f"{task:<30} {seconds:6.1f} s ({processor:5.1f} processor s)  {values}", flush=True)
        stop.set()
        peak = memory.result()
    print(
        f"{total:,} answers, {processes} processes: {max(by_process):.1f} s ({used:.1f} processor s), {peak:,.0f} MiB"
    )


if __name__ == "__main__":
    main()
