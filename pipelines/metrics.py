"""Scores of answers against references, one table from task to metrics."""

import re
from collections.abc import Callable, Mapping, Sequence

import jiwer

Score = Callable[[Sequence[str], Sequence[str]], float]


def normalise(text: str) -> str:
    """Return lower-case words without punctuation, single spaces between them."""
    return " ".join(re.sub(r"[^\w\s']", " ", text.lower()).split())


def word_error_rate(references: Sequence[str], answers: Sequence[str]) -> float:
    """Return substitutions, deletions and insertions per reference word over all pairs."""
    pairs = [(normalise(reference), normalise(answer)) for reference, answer in zip(references, answers, strict=True)]
    spoken = [(reference, answer) for reference, answer in pairs if reference]
    return float(jiwer.wer([pair[0] for pair in spoken], [pair[1] for pair in spoken])) if spoken else 0.0


def word_accuracy(references: Sequence[str], answers: Sequence[str]) -> float:
    """Return the share of reference words that the answers hold in place, after alignment."""
    pairs = [(normalise(reference), normalise(answer)) for reference, answer in zip(references, answers, strict=True)]
    spoken = [(reference, answer) for reference, answer in pairs if reference]
    if not spoken:
        return 0.0
    counts = jiwer.process_words([pair[0] for pair in spoken], [pair[1] for pair in spoken])
    return counts.hits / (counts.hits + counts.substitutions + counts.deletions)


def exact_match(references: Sequence[str], answers: Sequence[str]) -> float:
    """Return the share of answers equal to their reference."""
    pairs = zip(references, answers, strict=True)
    return sum(normalise(reference) == normalise(answer) for reference, answer in pairs) / len(references)


TRANSCRIPTION: Mapping[str, Score] = {"wer": word_error_rate, "word_accuracy": word_accuracy}
LABELLING: Mapping[str, Score] = {"accuracy": exact_match}
TASK_METRICS: Mapping[str, Mapping[str, Score]] = {"asr": TRANSCRIPTION, "overlapped_speech_recognition": TRANSCRIPTION}


def score(task: str, references: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Return a task's metrics; tasks without an entry of their own are scored by exact match."""
    return {name: metric(references, answers) for name, metric in TASK_METRICS.get(task, LABELLING).items()}
