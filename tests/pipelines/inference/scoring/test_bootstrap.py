"""Covers pipelines.inference.scoring.bootstrap, pipelines.inference.scoring.measured."""

import kaldialign
import numpy as np
import pytest

from pipelines.inference.scoring import bootstrap
from pipelines.inference.scoring.bootstrap import interval, p_value, resample, sum_by_clip
from pipelines.inference.scoring.measured import mean, ratio
from tests.pipelines.inference.scoring.builders import sentences


def test_rows_of_a_clip_are_summed():
    rows = np.array([[1.0, 1], [2, 1], [4, 1]])
    assert sum_by_clip(rows, ["b", "a", "b"]).tolist() == [[5, 2], [2, 1]]


def test_as_many_clips_are_drawn_as_there_are():
    sums = np.stack([np.arange(50.0), np.ones(50)], axis=1)
    drawn = resample(sums, resamples=100, seed=3)
    assert (drawn[:, 1] == 50).all() and len(set(drawn[:, 0])) > 50
    assert np.array_equal(drawn, resample(sums, resamples=100, seed=3))
    assert not np.array_equal(drawn, resample(sums, resamples=100, seed=4))


def test_the_interval_of_a_mean_is_that_of_statistics():
    values = np.random.default_rng(0).normal(3, 2, 400)
    one = mean("x", values, signature="")
    low, high = interval(ratio(resample(one.rows, resamples=4000, seed=0)))
    error = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.05 * error)


def test_answers_about_one_clip_are_no_evidence_of_their_own():
    values = np.random.default_rng(1).normal(0, 1, 100)
    alone, copies = mean("x", values, signature=""), mean("x", values.repeat(9), signature="")
    clips = np.arange(100).repeat(9).astype(str).tolist()
    widths = [
        np.subtract(*interval(ratio(resample(sums, resamples=2000, seed=0)))[::-1])
        for sums in (alone.rows, sum_by_clip(copies.rows, clips), copies.rows)
    ]
    assert widths[1] == pytest.approx(widths[0]) and widths[2] == pytest.approx(widths[0] / 3, rel=0.1)


def test_many_clips_in_groups_give_the_same_interval(monkeypatch):
    draw = np.random.default_rng(2)
    one = mean("x", draw.normal(0, 1, 10_037) + draw.random(10_037), signature="")
    intervals = []
    for most in (20_000, 2000):
        monkeypatch.setattr(bootstrap, "MOST_DRAWN", most)
        intervals.append(interval(ratio(resample(one.rows, resamples=2000, seed=0))))
    alone, grouped = intervals
    assert grouped == pytest.approx(alone, abs=0.08 * (alone[1] - alone[0]))


def test_intervals_of_error_rates_are_those_of_kaldi():
    references, answers = sentences(300, seed=5), sentences(300, seed=6)
    pairs = [(one.split(), other.split()) for one, other in zip(references, answers, strict=True)]
    found = [kaldialign.edit_distance(*pair) for pair in pairs]
    rows = np.array([(one["total"], one["ref_len"]) for one in found], float)
    theirs = kaldialign.bootstrap_wer_ci(*zip(*pairs, strict=True), replications=4000)
    low, high = interval(ratio(resample(rows, resamples=4000, seed=0)))
    width = theirs["ci95max"] - theirs["ci95min"]
    assert (low, high) == pytest.approx((theirs["ci95min"], theirs["ci95max"]), abs=0.05 * width)


def test_there_is_no_interval_without_values():
    assert interval(np.array([np.nan])) == (None, None)
    assert np.isnan(ratio(np.zeros((3, 2)))).all()


def test_p_values_are_two_sided_and_never_zero():
    assert p_value(np.full(999, -0.5)) == p_value(np.full(999, 0.5)) == 2 / 1000
    assert p_value(np.zeros(99)) == p_value(np.full(99, 1e-17)) == 1.0
    assert p_value(np.array([1.0] * 90 + [-1.0] * 9)) == pytest.approx(0.2)
