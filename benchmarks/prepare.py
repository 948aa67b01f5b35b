"""How long a manifest of many examples takes to prepare, and how much memory.

`python -m benchmarks.prepare [clips:examples …]`: a made-up corpus that states its durations; of up to a million clips
the recordings are there, a file for each clip, and are looked at. Then a hundredth as many clips are appended, and
`manifest info` and `manifest check` (without looking for recordings) read it all. Each in a process of its own, whose
peak resident memory is what the operating system says at its end.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from encoders.audio import Segment
from pipelines.manifest.corpus import CorpusExample, PrepareConfig
from pipelines.manifest.prepare import write_manifest
from pipelines.manifest.tools.check import manifest_check
from pipelines.manifest.tools.config import ManifestCheckConfig, ManifestInfoConfig
from pipelines.manifest.tools.info import manifest_info

MOST_CLIPS_WITH_FILES = 1_000_000
SIZES = ("300000:1000000", "10000000:10000000")
TASKS = ("asr", "gender_recognition", "phone_recognition", "sqa")


def recording_of(place: int) -> str:
    return f"train-{place % 97}/speaker-{place // 5000}/{place // 4:09d}.flac"


def made_up(num_clips: int, num_examples: int, first_clip: int = 0) -> Iterator[CorpusExample]:
    """Yield examples in turns over the clips."""
    for number in range(num_examples):
        place, turn = first_clip + number % num_clips, number // num_clips
        segment = Segment(recording_of(place), place % 4 * 15.0, 12.5)
        answer = f"the words of example {number} that someone may have spoken"
        yield CorpusExample((segment,), "train", TASKS[turn % 4], answer, f"question {turn}?" if turn >= 3 else None)


def work(what: str, out: str, num_clips: int, num_examples: int) -> None:
    if what == "info":
        manifest_info(ManifestInfoConfig(manifest=out))
        return
    if what == "check":
        manifest_check(ManifestCheckConfig(manifest=out, fraction=0.0))
        return
    more = num_clips // 100
    examples = made_up(more, more, num_clips) if what == "append" else made_up(num_clips, num_examples)
    is_there = num_clips <= MOST_CLIPS_WITH_FILES
    config = PrepareConfig(out=out, append=what == "append", missing="fail" if is_there else "keep")
    write_manifest(examples, corpus="made-up", root=str(Path(out).parent / "corpus"), config=config)


def write_recordings(root: Path, num_clips: int) -> None:
    for place in range(num_clips):
        path = root / recording_of(place)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not decoded here")


def measure(*arguments: str) -> tuple[float, float, float]:
    """Run a part of the work in a process; return its seconds, its processor seconds and its peak memory in MB."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.prepare", "work", *arguments], stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)} failed")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def main(sizes: list[str]) -> None:
    print("| clips | examples | | s | processor s | peak MB | MB on disk |\n|---|---|---|---|---|---|---|")
    for size in sizes:
        num_clips, num_examples = size.split(":")
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "manifest"
            (Path(folder) / "corpus").mkdir()
            if int(num_clips) <= MOST_CLIPS_WITH_FILES:
                write_recordings(Path(folder) / "corpus", int(num_clips) + int(num_clips) // 100)
            for what in ("prepare", "append", "info", "check"):
                seconds, busy, peak = measure(what, str(out), num_clips, num_examples)
                disk = sum(path.stat().st_size for path in out.glob("*.parquet")) / 1e6
                counts = f"{int(num_clips):,} | {int(num_examples):,}"
                print(f"| {counts} | {what} | {seconds:.1f} | {busy:.1f} | {peak:,.0f} | {disk:,.0f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        main(sys.argv[1:] or list(SIZES))
