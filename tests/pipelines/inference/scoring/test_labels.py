import pytest

from pipelines.inference.scoring.labels import (
    LABEL_WORDS,
    Match,
    chosen_option,
    first_label,
    match_label,
    match_open,
    match_slot,
    shown_options,
)
from pipelines.inference.scoring.scores import score, score_task
from tests.pipelines.inference.scoring.builders import answered, pairs

ANIMALS = "Which animal is it? (A) dog (B) cat (C) wild cat"


@pytest.mark.parametrize(
    ("task", "text", "label"),
    [
        ("speaker_verification", "No, yes would be wrong.", "no"),
        ("speaker_verification", "Nobody knows", None),
        ("gender_recognition", "The speaker is a woman.", "female"),
        ("gender_recognition", "It's a man's voice; male.", "male"),
        ("emotion_recognition", "She sounds excited and happy", "happy"),
        ("emotion_recognition", "Happiness.", "happy"),
    ],
)
def test_the_first_label_named_counts(task, text, label):
    assert first_label(LABEL_WORDS[task])(text) == label


def test_labels_are_matched_exactly_or_among_other_words():
    read = first_label(LABEL_WORDS["gender_recognition"])
    assert match_label(answered(["male"], "Male."), read) == Match("exact", True)
    assert match_label(answered(["male"], "a man"), read) == Match("contains", True)
    assert match_label(answered(["male"], "female, not male"), read) == Match(None, True)
    assert match_label(answered(["male"], "hard to say"), read) == Match(None, False)


@pytest.mark.parametrize(
    ("question", "options"),
    [
        (ANIMALS, {"a": "dog", "b": "cat", "c": "wild cat"}),
        ("Choose:\nA. rain\nB. wind", {"a": "rain", "b": "wind"}),
        ("Is it 1) rain, or so 2) wind?", {"1": "rain or so", "2": "wind"}),
        ("What is it? A dog.", {}),
        ("Say (B) dog (C) cat", {}),
        ("At 7: what rings?", {}),
    ],
)
def test_options_are_read_from_a_question(question, options):
    assert shown_options(question) == options


@pytest.mark.parametrize(
    ("answer", "chosen"),
    [
        ("B", "b"),
        ("(b) cat", "b"),
        ("The answer is B.", "b"),
        ("Option C", "c"),
        ("D", None),
        ("A dog", None),
        ("because", None),
    ],
)
def test_the_chosen_option(answer, chosen):
    assert chosen_option(answer, shown_options(ANIMALS)) == chosen


@pytest.mark.parametrize(
    ("reference", "answer", "match"),
    [
        ("cat", "Cat.", Match("exact", True)),
        ("cat", "It is a cat", Match("contains", True)),
        ("cat", "B", Match("option", True)),
        ("B", "(b)", Match("exact", True)),
        ("B", "It is B", Match(None, False)),
        ("B", "B. cat", Match("option", True)),
        ("(B) cat", "b", Match("option", True)),
        ("cat", "a dog or a cat", Match(None, True)),
        ("wild cat", "a wild cat", Match("contains", True)),
        ("cat", "A", Match(None, True)),
        ("cat", "a bird", Match(None, False)),
    ],
)
def test_answers_to_questions_with_options(reference, answer, match):
    assert match_open(answered([reference], answer, question=ANIMALS)) == match


def test_answers_to_open_questions_hold_a_reference_word_for_word():
    assert match_open(answered(["eight", "eight o'clock"], "At eight o'clock.")) == Match("contains", None)
    assert match_open(answered(["eight"], "eighty")).link is None
    assert match_open(answered([""], "anything")).link is None and match_open(answered(["x"], "")).link is None


def test_a_slot_is_filled_by_all_that_stands_between_its_commas():
    reference = "us dollar, yen"
    assert match_slot(answered([reference], "US dollar, yen")) == Match("exact", True)
    assert match_slot(answered([reference], "yen and us dollar")) == Match("contains", True)
    assert match_slot(answered([reference], "yen")) == Match(None, True)
    assert match_slot(answered(["yen"], "how much is one us dollar in the yen of today please")) == Match(
        "contains", False
    )
    assert match_slot(answered(["yen"], "")) == Match(None, False)


def test_each_link_is_counted_beside_the_accuracy():
    items = [answered(["cat"], text, clip=text, question=ANIMALS) for text in ("cat", "a cat", "b", "B)", "dog", "?")]
    accuracy, following = score_task("aqa", items).scores
    assert (accuracy.value, accuracy.notes) == (4 / 6, ("found right by: 1 exact, 1 contains, 2 option",))
    assert (following.name, following.value, following.items) == ("following_rate", 5 / 6, 6)


def test_questions_without_a_form_have_no_following_rate():
    assert score("sqqa", ["eight"], ["at eight"]) == {"accuracy": 1}
    assert score("emotion_recognition", ["sad", "sad"], ["angry", "x"]) == {"accuracy": 0, "following_rate": 0.5}


def test_tasks_outside_the_table_are_scored_by_exact_match():
    assert score("digit", ["One.", "two"], ["one", "one two"]) == {"accuracy": 0.5}


@pytest.mark.parametrize(
    ("reference", "answer", "value"),
    [
        ("Neural networks; fuzzy logic; control; robots", "1. neural networks\n2. robots\n3. logic", 2 / 3),
        ("Neural networks; fuzzy logic; control; robots", "chess, go, draughts, control", 0),
        ("control; robots; go", "control, control, Control.", 1 / 3),
        ("one word", "one word, two", 1),
        ("", "x", 0),
    ],
)
def test_three_keywords_are_looked_for_among_the_references(reference, answer, value):
    assert score("keywords", [reference], [answer]) == {"accuracy": pytest.approx(value)}


def test_the_best_of_several_lists_of_keywords_counts():
    assert score_task("keywords", [answered(["a, b, c", "x, y"], "x, y, a")]).value("accuracy") == 1


def test_stories_are_long_and_rich():
    long = " ".join(f"word{number % 30}" for number in range(50))
    assert score("audio_story", ["", ""], [long, "A dog, a Dog!"]) == {"diversity": 16, "following_rate": 0.5}
    assert score_task("audio_story", pairs([""], [long.rsplit(" ", 1)[0]])).value("following_rate") == 0
