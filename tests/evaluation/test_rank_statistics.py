"""Rank statistics: exact values against scipy and scikit-learn, replicates against sorting every resample."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from marginkit.errors import BadInput
from marginkit.evaluation.bootstrap import estimate, replicates
from marginkit.evaluation.ranks import area_under_curve, rank_correlation


def ones(n):
    return np.ones((1, n))


def test_rank_correlation_with_ties():
    x, y = [1.0, 2.0, 2.0, 3.0], [1.0, 3.0, 2.0, 3.0]
    # Midranks (1, 2.5, 2.5, 4) and (1, 3.5, 2, 3.5): covariance 3.75, sums of squares 4.5 and 4.5.
    assert rank_correlation(x, y)(ones(4))[0] == pytest.approx(3.75 / 4.5)
    assert np.isnan(rank_correlation([1.0, 1.0], [0.0, 2.0])(ones(2))[0])


@pytest.mark.parametrize("seed", range(4))
def test_rank_correlation_is_that_of_scipy(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 6, 80), rng.normal(size=80)
    y += 0.3 * x
    assert rank_correlation(x, y)(ones(80))[0] == pytest.approx(spearmanr(x, y).statistic)


def test_rank_correlation_sees_order_only():
    x = np.random.default_rng(6).normal(size=200)
    found = estimate(rank_correlation(x, np.exp(x)), np.arange(200), resamples=100)
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))


def _resampled(clusters, resamples, seed=0):
    """The rows of each resample of the clusters, the plain way, on the draw of `replicates`."""
    members = [np.flatnonzero(clusters == own) for own in np.unique(clusters)]
    drawn = np.random.default_rng(seed).integers(len(members), size=(resamples, len(members)))
    return [np.concatenate([members[own] for own in row]) for row in drawn]


@pytest.mark.parametrize("strength", [0.0, 0.5, 2.0])
def test_influence_gives_the_replicates_of_sorting_each_resample(strength):
    rng = np.random.default_rng(7)
    clusters = np.repeat(np.arange(150), 2)
    x = rng.integers(0, 5, 300).astype(float)
    y = strength * x + rng.normal(size=150)[clusters] + rng.normal(size=300)
    fast = replicates(rank_correlation(x, y), clusters, resamples=400)
    plain = np.array([spearmanr(x[rows], y[rows]).statistic for rows in _resampled(clusters, 400)])
    assert np.corrcoef(fast, plain)[0, 1] > 0.97
    assert np.quantile(fast, [0.025, 0.975]) == pytest.approx(
        np.quantile(plain, [0.025, 0.975]), abs=0.15 * plain.std()
    )


@pytest.mark.parametrize("seed", range(4))
def test_area_under_the_curve_is_that_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    score, positive = rng.integers(0, 9, 70).astype(float), rng.uniform(size=70) < 0.3
    assert area_under_curve(score, positive)(ones(70))[0] == pytest.approx(roc_auc_score(positive, score))


def test_replicates_of_the_area_are_those_of_counting_each_resample():
    rng = np.random.default_rng(8)
    clusters = np.repeat(np.arange(150), 2)
    positive = rng.uniform(size=300) < 0.7
    score = positive + rng.normal(size=300).round(1)
    fast = replicates(area_under_curve(score, positive), clusters, resamples=300)
    plain = np.array([roc_auc_score(positive[rows], score[rows]) for rows in _resampled(clusters, 300)])
    assert np.corrcoef(fast, plain)[0, 1] > 0.99
    assert np.quantile(fast, [0.025, 0.975]) == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.1 * plain.std())


def test_limits_of_the_area():
    assert area_under_curve([1.0, 2.0, 3.0], [False, True, True])(ones(3))[0] == 1
    assert area_under_curve([1.0, 1.0], [False, True])(ones(2))[0] == 0.5
    with pytest.raises(BadInput, match="both kinds"):
        area_under_curve([1.0, 2.0], [True, True])
