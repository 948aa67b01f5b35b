import math

import pytest

from llm.prompts import PROMPTS
from pipelines.inference.scoring.scores import (
    bleu4,
    characters,
    contains_reference,
    keyword_accuracy,
    phone_error_rate,
    rouge_l,
    story_diversity,
    story_following_rate,
    tokens_13a,
)
from pipelines.inference.scoring.tasks import EMOTION, GENDER, TASKS, YES_NO, score


def test_every_task_has_a_row_and_prompts():
    assert set(TASKS) == set(PROMPTS)
    assert [sum(task.level == level for task in TASKS.values()) for level in (1, 2, 3)] == [12, 5, 2]


@pytest.mark.parametrize("task", TASKS)
def test_every_task_scores_its_reference_best(task):
    reference = "yes a calm male voice says one two three four five"
    perfect = score(task, [reference], [reference])
    assert perfect == {name: pytest.approx(best(name), abs=1e-9) for name in TASKS[task].metrics}
    assert score(task, [reference], [""]) == {name: pytest.approx(worst(name)) for name in TASKS[task].metrics}


def best(metric):
    return {"wer": 0, "per": 0, "diversity": 11, "following_rate": 0}.get(metric, 1)


def worst(metric):
    return {"wer": 1, "per": 1}.get(metric, 0)


def test_tasks_outside_the_table_are_scored_by_exact_match():
    assert score("digit", ["One.", "two"], ["one", "one two"]) == {"accuracy": 0.5}


def test_bleu_is_the_mean_precision_of_n_grams_times_brevity():
    # 8 of 9, 5 of 7, 3 of 5 and 1 of 3 n-grams; 9 tokens against 10.
    references, answers = ["a b c d e f", "g h i j"], ["a b c d f", "g h i k"]
    precision = ((5 + 3) / 9 * (3 + 2) / 7 * (2 + 1) / 5 * (1 + 0) / 3) ** 0.25
    assert bleu4(references, answers) == pytest.approx(precision * math.exp(1 - 10 / 9))
    assert bleu4(["a b c d"], ["a b c d a b"]) == pytest.approx((4 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert bleu4(["a a b c d"], ["a a a a b c d"]) == pytest.approx((5 / 7 * 4 / 6 * 3 / 5 * 2 / 4) ** 0.25)
    assert bleu4(["a b c d"], ["a b c e"]) == 0.0


def test_chinese_and_japanese_are_compared_by_characters():
    assert characters("我 喜欢你。") == ["我", "喜", "欢", "你", "。"]
    assert score("en2zh", ["我喜欢你们"], ["我喜欢你"])["bleu4"] == pytest.approx(math.exp(1 - 5 / 4))
    assert score("en2ja", ["犬が好きです"], ["犬が好き です"])["bleu4"] == pytest.approx(1.0)


def test_german_punctuation_and_case_count_as_in_wmt():
    assert tokens_13a('Er sagte: "Ja, 3,5 km (ca. 10-mal)!"') == [
        *("Er", "sagte", ":", '"', "Ja", ",", "3,5", "km", "(", "ca", ".", "10", "-", "mal", ")", "!", '"')
    ]
    assert tokens_13a("Ende.") == ["Ende", "."] and tokens_13a("1.000, oder 2") == ["1.000", ",", "oder", "2"]
    lower, same = (
        score("en2de", ["Der Hund schläft hier."], [answer])["bleu4"]
        for answer in ("der Hund schläft hier.", "Der Hund schläft hier .")
    )
    assert lower == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25) and same == pytest.approx(1.0)


def test_rouge_l_weighs_recall_of_the_longest_common_subsequence():
    # "the cat … the mat" is common: 4 words of 6 in the reference and of 5 in the answer.
    expected = (1 + 1.44) * (4 / 5) * (4 / 6) / (4 / 6 + 1.44 * 4 / 5)
    assert rouge_l(["The cat sat on the mat."], ["the cat under the mat"]) == pytest.approx(expected)
    assert rouge_l(["a b", "c"], ["b a", ""]) == pytest.approx(0.5 / 2)


def test_phones_are_what_white_space_separates():
    assert phone_error_rate(["HH AH0 L OW1", "@ E"], ["HH AH0 L UW1 Z", "@ E"]) == pytest.approx(2 / 6)
    assert score("phone_recognition", ["a A"], ["a a"]) == {"per": 0.5}


def test_labels_are_read_from_whole_sentences():
    assert YES_NO("No, yes would be wrong.") == "no" and YES_NO("Nobody knows") == "Nobody knows"
    assert GENDER("The speaker is a woman.") == "female" and GENDER("It's a man's voice; male.") == "male"
    assert EMOTION("She sounds excited and happy") == EMOTION("Happiness.") == "happy"
    answers = ["Yes, they are the same.", "I would say no", "perhaps"]
    assert score("speaker_verification", ["yes", "yes", "no"], answers)["accuracy"] == pytest.approx(1 / 3)
    assert score("emotion_recognition", ["neutral", "sad"], ["The speaker is calm.", "angry"]) == {"accuracy": 0.5}
    assert score("gender_recognition", ["male"], ["female"]) == {"accuracy": 0.0}


def test_an_answer_may_hold_its_reference_among_other_words():
    assert contains_reference(["eight o'clock", "eight"], ["At eight o'clock.", "eighty"]) == 0.5


def test_three_keywords_are_looked_for_among_the_references():
    references = ["Neural networks; fuzzy logic; control; robots", "one word"]
    assert keyword_accuracy(references[:1], ["1. neural networks\n2. robots\n3. logic"]) == pytest.approx(2 / 3)
    assert keyword_accuracy(references[:1], ["chess, go, draughts, control"]) == 0.0
    assert keyword_accuracy(references[:1], ["control, control, Control."]) == pytest.approx(1 / 3)
    assert keyword_accuracy(references, ["fuzzy logic", "one word, two"]) == pytest.approx((1 / 3 + 1) / 2)


def test_stories_are_long_and_rich():
    long = " ".join(f"word{number % 30}" for number in range(50))
    assert story_diversity(["", ""], [long, "A dog, a Dog!"]) == (30 + 2) / 2
    assert story_following_rate(["", ""], [long, long.rsplit(" ", 1)[0]]) == 0.5
