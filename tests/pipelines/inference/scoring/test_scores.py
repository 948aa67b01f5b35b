"""Covers pipelines.inference.scoring.scores, pipelines.inference.scoring.answers."""

from dataclasses import replace

import numpy as np
import pytest

from pipelines.errors import UserError
from pipelines.inference.scoring.scores import MEASURES, paired_test, score, score_task
from pipelines.inference.scoring.tasks import TASKS
from tests.pipelines.inference.scoring.builders import answered, no_java, pairs, sentences

__all__ = ["no_java"]
pytestmark = pytest.mark.usefixtures("no_java")

PERFECT = "yes a calm male voice says one two three four five"
BEST = {"wer": 0, "wer_leaderboard": 0, "per": 0, "cpwer": 0, "diversity": 11, "cider_d": None}
WORST = {"wer": 1, "wer_leaderboard": 1, "per": 1, "cpwer": 1}
NEEDS_JAVA = {"meteor", "spice", "spider"}


def test_every_task_of_the_table_is_measured():
    assert set(MEASURES) == set(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_scores_its_reference_best_and_nothing_worst(task):
    for answer, extreme, other in ((PERFECT, BEST, 1), ("", WORST, 0)):
        found = {name: value for name, value in score(task, [PERFECT], [answer]).items() if name not in NEEDS_JAVA}
        if task in ("audio_story", "slot_filling"):
            found.pop("following_rate")  # neither a story nor a slot has eleven words
        assert found == {name: pytest.approx(extreme.get(name, other), abs=1e-9) for name in found}
        assert found.keys() <= set(TASKS[task].scores) and TASKS[task].scores[0] in found


@pytest.mark.parametrize("task", TASKS)
def test_scores_come_in_the_order_of_the_table_with_signature_and_interval(task):
    texts = sentences(30, seed=1)
    found = score_task(task, pairs(texts, reversed(texts)), resamples=200).scores
    names = [one.name for one in found]
    assert names == [name for name in TASKS[task].scores if name in names]
    for one in found:
        assert one.signature and (one.value is None or one.name in NEEDS_JAVA or one.low <= one.value <= one.high)


def test_scores_say_what_they_stand_on():
    items = [answered(["a b", "a c"], "a b"), answered(["d"], " ", question="!"), answered(["e"], "e", clip="x")]
    found = score_task("asr", iter(items))
    assert (found.test_set, found.clips, found.examples, found.references) == ("made", 2, 3, 4)
    assert found.notes == ("1 empty answers",) and found.scores[0].items == 3
    assert score_task("asr", items, test_set="LibriSpeech test-clean").test_set == "LibriSpeech test-clean"
    assert found.value("wer") == 1 / 4 and found.value("none") is None


def test_intervals_depend_on_the_seed_alone():
    items = pairs(sentences(50, seed=1), sentences(50, seed=2))
    first, same, other = (score_task("asr", items, seed=seed).scores[0] for seed in (1, 1, 2))
    assert first == same and (first.low, first.high) != (other.low, other.high)
    assert score_task("asr", items, resamples=0).scores[0] == replace(first, low=None, high=None)


def test_input_that_cannot_be_scored_is_refused():
    for items, message in (
        ([], "asr: there is no answer to score"),
        ([replace(answered(["a"], "a"), references=())], "asr: '.' of clip c has no reference"),
        ([answered(["a"], "a")] * 2, "asr: '.' of clip c is answered 2 times"),
    ):
        with pytest.raises(UserError, match=message):
            score_task("asr", items)


def test_a_real_difference_is_told_from_chance():
    references = sentences(200, seed=1)
    half = [text if place % 2 else "x" for place, text in enumerate(references)]
    ours, theirs = pairs(references, references), pairs(references, half)
    by_name = {one.name: one for one in paired_test("asr", ours, theirs)}
    wer = by_name["wer"]
    assert (wer.ours, wer.theirs) == (0, score("asr", references, half)["wer"]) and wer.difference == -wer.theirs
    assert wer.low < wer.difference < wer.high < 0 and wer.p_value == 2 / 1001
    again = {one.name: one for one in paired_test("asr", theirs, reversed(ours))}["wer"]
    assert (again.low, again.high) == pytest.approx((-wer.high, -wer.low))


def test_equal_answers_do_not_differ():
    items = pairs(sentences(40, seed=1), sentences(40, seed=2))
    for one in paired_test("music_caption", items, items[::-1]):
        assert one.difference == pytest.approx(0) and one.p_value == 1


def test_p_values_of_noise_are_spread_evenly():
    draw = np.random.default_rng(0)
    small = 0
    for _ in range(200):
        ours, theirs = (["a" if right else "b" for right in draw.random(80) < 0.6] for _ in range(2))
        found = paired_test("digit", pairs(["a"] * 80, ours), pairs(["a"] * 80, theirs), resamples=200)[0]
        small += found.p_value < 0.2
    assert small / 200 == pytest.approx(0.2, abs=0.08)


def test_sides_that_answer_other_questions_are_refused():
    first, second = pairs(["a", "b"], ["a", "b"]), pairs(["a"], ["a"])
    with pytest.raises(UserError, match=r"1 questions are answered on one side, such as '.' of clip 1"):
        paired_test("asr", first, second)
