"""The task table: what level a task is of, which scores its answers get, and what an answer looks like.

How a task is asked stands under the same name in `llm.prompts.PROMPTS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True)
class Task:
    """A row of the table.

    Args:
        level: 1 trained, 2 speech tasks that emerge, 3 tasks of speech and other sounds that emerge.
        scores: Names, the paper's first; `docs/scores.md` says how each is computed.
        example: A reference, to show its form.
    """

    level: Literal[1, 2, 3]
    scores: tuple[str, ...]
    example: str


TRANSCRIPT = ("wer", "wer_leaderboard", "word_accuracy", "cer")
LABEL = ("accuracy", "following_rate")
CAPTION = ("bleu4", "rouge_l", "cider_d", "meteor", "spice", "spider")
STORY = ("diversity", "following_rate")

TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "asr": Task(1, TRANSCRIPT, "he came home at half past nine"),
        "en2zh": Task(1, ("bleu4", "bleu4_zh"), "我喜欢夏天的雨。"),
        "audiocaption": Task(1, (*CAPTION, "accuracy"), "Rain falls while a dog barks."),
        "phone_recognition": Task(1, ("per",), "HH AH L OW W ER L D"),
        "emotion_recognition": Task(1, LABEL, "happy"),
        "music_caption": Task(1, CAPTION, "A slow piano piece with soft strings."),
        "overlapped_speech_recognition": Task(1, ("cpwer", "word_accuracy"), "the rain in spain\nhello there"),
        "speaker_verification": Task(1, LABEL, "yes"),
        "gender_recognition": Task(1, LABEL, "female"),
        "sqa": Task(1, LABEL, "in the garden"),
        "aqa": Task(1, LABEL, "a dog"),
        "mqa": Task(1, LABEL, "violin"),
        "en2de": Task(2, ("bleu4",), "Der Hund schläft hier."),
        "en2ja": Task(2, ("bleu4", "bleu4_mecab"), "犬が好きです。"),
        "keywords": Task(2, ("accuracy",), "neural networks, fuzzy logic, control"),
        "sqqa": Task(2, LABEL, "eight o'clock"),
        "slot_filling": Task(2, LABEL, "yesterday"),
        "audio_story": Task(3, STORY, "It was late when the rain began, and the dog would not sleep. …"),
        "speech_audio_coreasoning": Task(3, LABEL, "the kettle is boiling"),
    }
)
OTHER = Task(1, ("accuracy",), "")
"""Any other task: its answers are right where they are a reference."""
