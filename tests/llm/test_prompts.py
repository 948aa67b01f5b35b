import collections

import pytest

from llm.prompts import PROMPTS, question_for

PAPER_TASKS = {
    "asr", "en2zh", "audiocaption", "phone_recognition", "emotion_recognition", "music_caption",
    "overlapped_speech_recognition", "speaker_verification", "gender_recognition", "sqa", "aqa", "mqa",
    "en2de", "en2ja", "keywords", "sqqa", "slot_filling", "audio_story", "speech_audio_coreasoning",
}  # fmt: skip


def test_every_task_of_the_paper_has_questions() -> None:
    assert set(PROMPTS) == PAPER_TASKS
    for task, templates in PROMPTS.items():
        assert len(set(templates)) == len(templates), task
        assert templates == ("{question}",) or len(templates) >= 4, task


def test_without_a_seed_the_first_question_is_asked() -> None:
    assert question_for("asr", example_id="a", epoch=3) == PROMPTS["asr"][0]


def test_an_examples_own_question_is_asked_as_it_is() -> None:
    assert question_for("aqa", question="Is it raining?", seed=1) == "Is it raining?"
    assert question_for("never heard of", question="Is it raining?") == "Is it raining?"


def test_a_seeded_choice_is_stable_and_uses_all_questions() -> None:
    drawn = [question_for("asr", example_id=str(i), seed=0) for i in range(500)]
    assert drawn == [question_for("asr", example_id=str(i), seed=0) for i in range(500)]
    counts = collections.Counter(drawn)
    assert set(counts) == set(PROMPTS["asr"])
    assert min(counts.values()) > 60
    assert question_for("asr", example_id="clip-7", seed=5) == "Give me the exact words of the speaker."


def test_another_seed_or_epoch_draws_again() -> None:
    def draw(seed: int, epoch: int) -> list[str]:
        return [question_for("asr", example_id=str(i), seed=seed, epoch=epoch) for i in range(20)]

    assert draw(0, 0) != draw(1, 0) != draw(1, 1)


def test_an_unknown_task_is_an_error_with_the_nearest_names() -> None:
    with pytest.raises(ValueError, match=r"task 'gender_recogniton' has no questions.*gender_recognition"):
        question_for("gender_recogniton")


def test_question_answering_needs_a_question() -> None:
    with pytest.raises(ValueError, match="task 'sqa' asks each example's own question, and example 'c1' has none"):
        question_for("sqa", example_id="c1")
