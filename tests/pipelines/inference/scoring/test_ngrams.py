"""BLEU's statistics and CIDEr-D beside the libraries that define them."""

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider_scorer import CiderScorer

from pipelines.inference.scoring.ngrams import bleu_rows, bleu_rows_and_cider, number_texts
from tests.pipelines.inference.scoring.builders import captioned


def numbered(items):
    return number_texts((item.answer.split() for item in items), ([r.split() for r in i.references] for i in items))


def test_rows_of_bleu_by_hand():
    # "a a b" holds a twice in the second reference at most, and "a b" once; its length is nearest to 3.
    texts = number_texts([["a", "a", "b"], []], [[["a", "b"], ["a", "a", "c", "d"]], [["x"]]])
    assert bleu_rows(texts).tolist() == [[3, 2, 0, 0, 3, 2, 1, 0, 3, 2], [0, 0, 0, 0, 0, 0, 0, 0, 0, 1]]


@pytest.mark.parametrize("seed", range(4))
def test_rows_of_bleu_are_those_of_coco(seed):
    items = captioned(80, seed=seed)
    scorer = BleuScorer(n=4)
    for item in items:
        scorer += (item.answer, list(item.references))
    rows = bleu_rows(numbered(items))
    for row, theirs in zip(rows.tolist(), scorer.ctest, strict=True):
        nearest = scorer._single_reflen(theirs["reflen"], "closest", theirs["testlen"])
        assert row == [*theirs["correct"], *theirs["guess"], theirs["testlen"], nearest]


@pytest.mark.parametrize("seed", range(4))
def test_cider_d_is_that_of_coco(seed):
    items = captioned(60, seed=seed)
    scorer = CiderScorer(n=4)
    for item in items:
        scorer += (item.answer, list(item.references))
    mean, each = scorer.compute_score()
    texts = numbered(items)
    rows, found = bleu_rows_and_cider(texts)
    assert found == pytest.approx(each, abs=1e-9) and np.array_equal(rows, bleu_rows(texts))
    assert mean > 0.5


def test_texts_without_tokens_count_for_nothing():
    texts = number_texts([[], []], [[[]], [["a"]]])
    rows, cider = bleu_rows_and_cider(texts)
    assert not rows[:, :-1].any() and np.array_equal(cider, [0, 0])
