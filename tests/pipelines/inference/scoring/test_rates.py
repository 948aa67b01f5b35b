import random
from itertools import permutations

import jiwer
import kaldialign
import numpy as np
import pytest

from pipelines.inference.scoring.rates import align_words, overlapped, phone_transcripts, transcripts
from pipelines.inference.scoring.scores import score, score_task
from pipelines.inference.scoring.texts import whisper_english
from tests.pipelines.inference.scoring.builders import answered, pairs, sentences


def by_name(measured):
    return {one.name: (float(one.of_sums(one.rows.sum(axis=0))), one) for one in measured}


def test_rates_by_hand():
    # One substitution in three words, then one insertion beside one.
    found = by_name(transcripts(pairs(["a b c", "d"], ["a x c", "d e"])))
    assert found["wer"][0] == pytest.approx(2 / 4) and found["word_accuracy"][0] == pytest.approx(3 / 4)


def test_rates_over_all_words_are_those_of_jiwer_and_kaldialign():
    references, answers = sentences(400, seed=1), sentences(400, seed=2)
    found = by_name(transcripts(pairs(references, answers)))
    ours, theirs = [*map(whisper_english, references)], [*map(whisper_english, answers)]
    whole = jiwer.process_words(ours, theirs)
    assert found["wer"][0] == pytest.approx(whole.wer)
    assert found["word_accuracy"][0] == pytest.approx(whole.hits / found["wer"][1].rows[:, 1].sum())
    split = [[text.split() for text in side] for side in (ours, theirs)]
    assert found["wer_leaderboard"][0] == kaldialign.batch_error_rate(*split, merge_compounds=True)["err_rate"]


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("l\u2019\u00e9t\u00e9 est l\u00e0", "l'e\u0301te\u0301 est la\u0300"),
        ("Привет, й", "привет и\u0306"),
        ("हिन्दी में", "हिन्दी  में।"),
        ("it’s", "it's"),
        ("Don‘t", "don't"),
        ("it ʼs", "IT'S"),
        ("TWO HUNDRED", "200"),
        ("MISTER SMITH", "Mr. Smith"),
        ("twenty five percent", "25%"),
    ],
)
def test_what_is_written_another_way_is_no_error(reference, answer):
    assert score("asr", [reference], [answer])["wer"] == 0


def test_vowel_signs_are_no_notation():
    assert score("asr", ["हिन्दी में"], ["हन्दी में"])["wer"] == 0.5


def test_compounds_are_errors_of_the_paper_and_not_of_leaderboards():
    found = score("asr", ["the white paper"], ["the whitepaper"])
    assert (found["wer"], found["wer_leaderboard"]) == (pytest.approx(2 / 3), 0)


def test_languages_without_spaces_are_rated_by_characters():
    items = pairs(["我喜欢你。", "สวัสดี", "a b"], ["我喜 欢他", "สวัสดี", "a c"])
    found = by_name(transcripts(items))
    assert found["cer"][0] == pytest.approx(1 / 10) and found["cer"][1].items == 2
    assert found["wer"][0] == 0.5 and found["wer"][1].items == 1
    assert found["cer"][0] == pytest.approx(jiwer.cer(["我喜欢你", "สวัสดี"], ["我喜欢他", "สวัสดี"]))


def test_insertions_beside_empty_references_stand_apart():
    scores = score_task("asr", pairs(["a b", "", "(noise)"], ["a b", "c d e", "f g"])).scores
    assert scores[0].value == 0 and scores[0].items == 1
    assert scores[0].notes == ("2 empty references: 5 words inserted, counted apart",)
    assert score("asr", [""], ["a"]) == {}


def test_the_nearest_of_several_references_counts():
    found = by_name(transcripts([answered(["a b c d", "x y"], "x z"), answered(["q"], "q")]))
    assert found["wer"][1].rows.tolist() == [[1, 2], [0, 1]]


def test_each_answer_is_aligned_as_jiwer_aligns_it():
    vocabulary = ["a", "b", "c", "the cat", "sat"]
    references, answers = (sentences(2000, seed=seed, most_words=12, vocabulary=vocabulary) for seed in (1, 2))
    answers = ["", "a", *answers[2:]]
    expected = []
    for reference, answer in zip(references, answers, strict=True):
        found = jiwer.process_words(reference, answer)
        expected.append((found.substitutions + found.deletions + found.insertions, found.hits, len(reference.split())))
    assert align_words(references, answers).tolist() == [*map(list, expected)]


@pytest.mark.parametrize(
    ("reference", "answer", "rate"),
    [
        ("HH AH0 L OW1", "hh ah l ow", 0),
        ("ˈh ɛ l oʊ", "h ɛ l oʊ", 0),
        ("AE1 N D", "ae2 n", 1 / 3),
        ("SH IY1", "SH IY0 Z", 1 / 2),
    ],
)
def test_phone_error_rates(reference, answer, rate):
    assert score("phone_recognition", [reference], [answer]) == {"per": pytest.approx(rate)}


def test_phone_error_rate_is_that_of_jiwer():
    phones = ["AA", "B", "CH", "D", "ER"]
    references, answers = (sentences(200, seed=seed, vocabulary=phones) for seed in (1, 2))
    found = by_name(phone_transcripts(pairs(references, answers)))
    assert found["per"][0] == pytest.approx(jiwer.wer(references, answers))


@pytest.mark.parametrize(
    ("reference", "answer", "rate"),
    [
        ("a cat ran off\nhello you", "hello you\na cat ran off", 0),
        ("a cat ran off\nhello you", "Hello, you!\n\nA cat ran off.\n", 0),
        ("a cat ran off\nhello you", "a cat ran off hello you", 4 / 6),
        ("a cat ran off\nhello you", "hello me\na cat ran off\nand more", 3 / 6),
        ("a cat ran off\nhello you", "", 1),
    ],
)
def test_speakers_may_come_in_any_order(reference, answer, rate):
    assert score("overlapped_speech_recognition", [reference], [answer])["cpwer"] == pytest.approx(rate)


def test_cpwer_is_the_smallest_rate_of_all_orders():
    draw = random.Random(0)
    vocabulary = ["red", "blue", "green", "boat", "house", "the", "a"]
    references = ["\n".join(sentences(2, seed=seed, vocabulary=vocabulary)) for seed in range(200)]
    answers = ["\n".join(sentences(draw.choice([1, 2, 3]), seed=~seed, vocabulary=vocabulary)) for seed in range(200)]
    errors, words = 0, 0
    for reference, answer in zip(references, answers, strict=True):
        speakers, lines = reference.split("\n"), answer.split("\n")
        speakers, lines = (side + [""] * (3 - len(side)) for side in (speakers, lines))
        errors += min(
            sum(
                round(jiwer.wer(one, other) * len(one.split())) if one else len(other.split())
                for one, other in zip(speakers, order, strict=True)
            )
            for order in permutations(lines)
        )
        words += len(reference.split())
    found = by_name(overlapped(pairs(references, answers)))
    assert found["cpwer"][0] == pytest.approx(errors / words)


def test_an_answer_of_endless_lines_is_rated():
    endless = "\n".join(f"line {number}" for number in range(500))
    assert score("overlapped_speech_recognition", ["line 3\nb c"], [endless])["cpwer"] == (2 + 498 * 2) / 4


def test_more_pairs_than_a_block_are_aligned():
    rows = by_name(transcripts(pairs(["a b"] * 5000, ["a"] * 5000)))["wer"][1].rows
    assert np.array_equal(rows, np.tile([1.0, 2.0], (5000, 1)))


def test_texts_are_normalised_once():
    """A second time makes 7 of 007 and 5 of -5."""
    assert score("asr", ["zero zero seven"], ["seven"])["wer"] == 1
    assert score("asr", ["minus five"], ["five"])["wer"] == 1
