"""The task table: what level a task is of, how its answers are read and what they are scored by.

How a task is asked stands under the same name in `llm.prompts.PROMPTS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Literal

from pipelines.inference.scoring.scores import (
    Score,
    bleu4,
    characters,
    contains_reference,
    exact_match,
    keyword_accuracy,
    phone_error_rate,
    rouge_l,
    story_diversity,
    story_following_rate,
    tokens_13a,
    word_accuracy,
    word_error_rate,
    words,
)


@dataclass(frozen=True)
class Task:
    """A row of the table.

    Args:
        level: 1 trained, 2 speech tasks that emerge, 3 tasks of speech and other sounds that emerge.
        metrics: Name -> score of references and answers.
        read: What references and answers are turned into before they are scored.
    """

    level: Literal[1, 2, 3]
    metrics: Mapping[str, Score]
    read: Callable[[str], str] = str


def first_label(labels: Mapping[str, str]) -> Callable[[str], str]:
    """Return a reader of the label that a text names first, given label -> the words for it; other texts stay."""
    label_of = {word: label for label, words_for_it in labels.items() for word in words_for_it.split()}

    def read(text: str) -> str:
        return next((label_of[word] for word in words(text) if word in label_of), text)

    return read


YES_NO = first_label({"yes": "yes", "no": "no"})
GENDER = first_label({"male": "male man masculine", "female": "female woman feminine"})
EMOTION = first_label(
    {
        "happy": "happy hap happiness joy joyful excited excitement",
        "sad": "sad sadness sorrow",
        "angry": "angry ang anger",
        "neutral": "neutral neu calm",
    }
)

TRANSCRIPT: Mapping[str, Score] = {"wer": word_error_rate, "word_accuracy": word_accuracy}
LABEL: Mapping[str, Score] = {"accuracy": exact_match}
HOLDS_LABEL: Mapping[str, Score] = {"accuracy": contains_reference}
CAPTION: Mapping[str, Score] = {"bleu4": bleu4, "rouge_l": rouge_l}
CHARACTERS: Mapping[str, Score] = {"bleu4": partial(bleu4, tokenise=characters)}

TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "asr": Task(1, TRANSCRIPT),
        "en2zh": Task(1, CHARACTERS),
        "audiocaption": Task(1, {**LABEL, **CAPTION}),
        "phone_recognition": Task(1, {"per": phone_error_rate}),
        "emotion_recognition": Task(1, LABEL, EMOTION),
        "music_caption": Task(1, CAPTION),
        "overlapped_speech_recognition": Task(1, TRANSCRIPT),
        "speaker_verification": Task(1, LABEL, YES_NO),
        "gender_recognition": Task(1, LABEL, GENDER),
        "sqa": Task(1, LABEL),
        "aqa": Task(1, LABEL),
        "mqa": Task(1, LABEL),
        "en2de": Task(2, {"bleu4": partial(bleu4, tokenise=tokens_13a)}),
        "en2ja": Task(2, CHARACTERS),
        "keywords": Task(2, {"accuracy": keyword_accuracy}),
        "sqqa": Task(2, HOLDS_LABEL),
        "slot_filling": Task(2, HOLDS_LABEL),
        "audio_story": Task(3, {"diversity": story_diversity, "following_rate": story_following_rate}),
        "speech_audio_coreasoning": Task(3, HOLDS_LABEL),
    }
)


def score(task: str, references: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Return a task's metrics; tasks that are not in the table are scored by exact match."""
    row = TASKS.get(task, Task(1, LABEL))
    read_references, read_answers = [*map(row.read, references)], [*map(row.read, answers)]
    return {name: metric(read_references, read_answers) for name, metric in row.metrics.items()}
