"""Small corpora and caches that tests make for themselves."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

RATE_HZ = 16_000


def tone(seconds: float, *, hertz: float = 440.0, seed: int = 0) -> np.ndarray:
    """A decaying tone over a little noise, float32 in [-1, 1]."""
    times = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    noise = np.random.Generator(np.random.PCG64(seed)).standard_normal(len(times))
    return (0.4 * np.exp(-times) * np.sin(2 * np.pi * hertz * times) + 0.01 * noise).astype(np.float32)


def write_tones(folder: Path, seconds: Sequence[float]) -> list[str]:
    """Write one WAV per length, each another tone, and return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"tone-{number}.wav" for number in range(len(seconds))]
    for number, (name, length) in enumerate(zip(names, seconds, strict=True)):
        soundfile.write(folder / name, tone(length, hertz=200.0 + 100.0 * number, seed=number), RATE_HZ)
    return names


def write_annotations(path: Path, entries: Sequence[dict]) -> Path:
    path.write_text(json.dumps({"annotation": list(entries)}))
    return path


def write_tone_corpus(folder: Path, *, num_clips: int = 12, damaged: int = 0) -> Path:
    """Write tones and a table of them: each clip says whether it is high or low, the last are damaged."""
    names = write_tones(folder / "audio", [1.0 + 0.25 * (number % 4) for number in range(num_clips)])
    for name in names[num_clips - damaged :]:
        (folder / "audio" / name).write_bytes((folder / "audio" / name).read_bytes()[:1000])
    rows = [
        {
            "path": name,
            "text": "high" if number % 2 else "low",
            "task": "audiocaption",
            "split": "test" if number % 4 == 3 else "train",
        }
        for number, name in enumerate(names)
    ]
    (folder / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
