"""Agreement and gaps along the grade gap, on tables whose answer is known."""

import json

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from marginkit.errors import BadInput
from marginkit.evaluation.calibration import sigmoid
from marginkit.evaluation.gaps import buckets, by_gap
from marginkit.evaluation.metrics import evaluate
from pair_tables import pairs


def _graded(seed=0, n=400):
    rng = np.random.default_rng(seed)
    grade = rng.integers(0, 4, n).astype(float)
    return grade, 0.7 * grade + rng.normal(0, 1, n)


def test_buckets_are_the_values_where_there_are_few():
    grade, gap = _graded()
    tie = grade == 0
    study = by_gap(pairs(gap, grade_gap=grade, tie=tie))
    assert [bucket.name for bucket in study.buckets] == ["0", "1", "2", "3"]
    assert sum(bucket.n for bucket in study.buckets) == 400
    for bucket in study.buckets:
        inside = grade == bucket.low
        assert bucket.n == inside.sum()
        assert bucket.ties == (inside & tie).sum()
        assert bucket.gap.value == pytest.approx(gap[inside].mean())
        assert bucket.prob.value == pytest.approx(sigmoid(gap[inside]).mean())
        assert bucket.agreement.n == (inside & ~tie).sum()
        if bucket.low:
            assert bucket.agreement.value == pytest.approx((gap[inside] > 0).mean())
    assert np.isnan(study.buckets[0].agreement.value)  # ties alone: nothing to agree with
    assert (study.measure, study.unit, study.left_out) == ("grade_gap", "dataset units", 0)
    assert (study.rises, study.steps) == (3, 3)
    assert study.correlation.value == pytest.approx(spearmanr(gap, grade).statistic)
    assert study.tie_auc.value == pytest.approx(roc_auc_score(~tie, np.abs(gap)))
    json.dumps(study.to_json(), allow_nan=False)


def test_numbers_of_the_study_are_those_of_the_evaluation():
    grade, gap = _graded(1)
    table = pairs(gap, grade_gap=grade, tie=grade == 0)
    study, whole = by_gap(table), evaluate(table)
    assert whole["grade_correlation"] == study.correlation
    assert whole["tie_auc"] == study.tie_auc
    assert "grade_correlation" not in evaluate(pairs(gap))
    assert "grade_correlation" not in evaluate(pairs(gap, grade_gap=np.ones(len(gap))))


def test_values_that_differ_by_rounding_are_one():
    """Thirds written with four digits: 1/3 is .3333 or .3334, and has two forms of .3333 in floats."""
    found = list(buckets(np.array([0.6667 - 0.3333, 1 - 0.6667, 1 - 0.6667, 0.3333, 0.0, 1.0, np.nan])))
    assert [(round(low, 4), low == high, int(inside.sum())) for low, high, inside in found] == [
        (0.0, True, 1),
        (0.3333, True, 4),
        (1.0, True, 1),
    ]


def test_many_values_make_five_buckets_of_equal_count():
    values = np.random.default_rng(2).normal(size=1000)
    found = list(buckets(values))
    assert len(found) == 5
    assert [int(inside.sum()) for _, _, inside in found] == [200] * 5
    assert (np.sum([inside for _, _, inside in found], axis=0) == 1).all()
    crowded = np.concatenate([np.zeros(900), np.arange(1.0, 101)])
    found = list(buckets(crowded))
    assert sum(int(inside.sum()) for _, _, inside in found) == 1000
    assert len(found) == 2  # nine in ten are one value: no bucket is empty, none is cut through it


def test_a_reward_that_knows_only_the_order_shows_it():
    """The same gap everywhere: all agree, nothing rises, ties are not told."""
    study = by_gap(
        pairs(np.ones(90), grade_gap=np.repeat([0.0, 1.0, 2.0], 30), tie=np.repeat([True, False, False], 30))
    )
    assert study.rises == 0
    assert study.tie_auc.value == 0.5
    assert np.isnan(study.correlation.value)
    assert [bucket.agreement.value for bucket in study.buckets[1:]] == [1, 1]


def test_measure_falls_back_to_the_target_gap_and_says_so():
    grade, gap = _graded(3)
    study = by_gap(pairs(gap, target_gap=grade))
    assert (study.measure, study.unit) == ("target_gap", "logits")
    both = pairs(gap, target_gap=2 * grade, grade_gap=[None, *grade[1:]])
    assert by_gap(both).left_out == 1
    assert [bucket.high for bucket in by_gap(both, measure="target_gap").buckets] == [0, 2, 4, 6]
    assert by_gap(both).tie_auc is None


def test_what_has_no_gap_is_refused():
    with pytest.raises(BadInput, match="no pair has a grade gap or target gap"):
        by_gap(pairs([1.0]))
    with pytest.raises(BadInput, match="no pair has a grade gap"):
        by_gap(pairs([1.0], target_gap=[1.0]), measure="grade_gap")
    with pytest.raises(BadInput, match="must be one of grade_gap, target_gap"):
        by_gap(pairs([1.0]), measure="strength")
