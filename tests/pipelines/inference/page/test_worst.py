import math

import pytest

from pipelines.inference.answer_table import TaskAnswers
from pipelines.inference.page.worst import MOST_LABELS, NONE, worst_answers


def part(task, pairs):
    rows = [
        {"clip_id": str(n), "corpus": "c", "question": "?", "references": [reference], "answer": answer}
        for n, (reference, answer) in enumerate(pairs)
    ]
    return TaskAnswers(task, "c", "test", rows)


def order(worst):
    return [int(row["clip_id"]) for row in worst.rows]


@pytest.mark.parametrize(
    ("task", "pairs", "score"),
    [
        ("asr", [("one two", "one two"), ("one two", "six seven eight"), ("one two", "one six")], "wer"),
        ("sqa", [("dog", "dog"), ("cat", "bird"), ("dog", "a dog")], "accuracy"),
        ("audio_story", [("", "one two three"), ("", "one"), ("", "one two")], "diversity"),
        ("audiocaption", [("dog barks", "dog barks"), ("dog barks", "rain"), ("dog barks", "dog sits")], "rouge_l"),
    ],
)
def test_the_worst_come_first_whether_a_score_counts_errors_or_not(task, pairs, score):
    worst = worst_answers(part(task, pairs), 3)
    assert worst.score == score and order(worst)[0] == 1
    assert order(worst_answers(part(task, pairs), 2)) == order(worst)[:2]


def test_answers_without_a_value_come_last():
    worst = worst_answers(part("asr", [("", "noise"), ("one", "one"), ("one", "six")]), 9)
    assert order(worst) == [2, 1, 0] and math.isnan(worst.rows[2]["value"])


def test_labels_are_counted_where_they_were_taken_for_one_another():
    pairs = [("happy", "happy"), ("sad", "He is angry"), ("sad", "sadness"), ("angry", "no idea")]
    confusion = worst_answers(part("emotion_recognition", pairs), 0).confusion
    assert confusion.labels == ("angry", "happy", "sad", NONE)
    assert confusion.counts == ((0, 0, 0, 1), (0, 1, 0, 0), (1, 0, 1, 0), (0, 0, 0, 0))


def test_references_are_labels_where_they_are_few():
    pairs = [("dog", "a dog"), ("dog barking", "dog barking"), ("dog", "dog barking"), ("dog barking", "dog or cat")]
    confusion = worst_answers(part("aqa", pairs), 0).confusion
    assert confusion.labels == ("dog", "dog barking", NONE)
    assert confusion.counts == ((2, 0, 0), (1, 1, 0), (0, 0, 0))  # what holds its reference is right


def test_an_answer_that_names_other_options_too_names_none():
    rows = part("aqa", [("dog", "dog, not cat"), ("cat", "cat")] * 2)
    for row in rows.rows:
        row["question"] = "Which? (A) dog (B) cat"
    confusion = worst_answers(rows, 0).confusion
    assert confusion.counts == ((2, 0, 0), (0, 0, 2), (0, 0, 0))


@pytest.mark.parametrize(
    ("task", "texts"),
    [("asr", ["one"] * 4), ("sqa", ["a", "b", "c"]), ("sqa", [str(n) for n in range(MOST_LABELS + 1)] * 2)],
)
def test_answers_that_are_no_labels_have_no_matrix(task, texts):
    assert worst_answers(part(task, [(text, text) for text in texts]), 0).confusion is None
