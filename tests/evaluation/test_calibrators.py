"""Calibrators against scikit-learn, their symmetry, their bounds, and what they do to pairs they have not seen."""

import json

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from marginkit.errors import BadInput
from marginkit.evaluation.calibration import sigmoid
from marginkit.evaluation.calibrators import HOW, calibrate, fit_calibrator, fit_temperature
from pair_tables import pairs


def _pairs(seed, n=200, scale=0.5):
    rng = np.random.default_rng(seed)
    gap = rng.normal(0, 1.5, n)
    return gap, (rng.uniform(size=n) < sigmoid(scale * gap)).astype(float)


def both_sides(gap, label):
    return np.concatenate([gap, -gap]), np.concatenate([label, 1 - label])


@pytest.mark.parametrize("seed", range(3))
def test_temperature_is_the_slope_of_an_unpenalised_logistic_regression(seed):
    gap, label = _pairs(seed)
    fitted = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(gap[:, None], label)
    assert fit_calibrator(gap, label).slope == pytest.approx(fitted.coef_[0, 0], rel=1e-5)


@pytest.mark.parametrize("scale", [0.5, 2.0, -1.0])
def test_platt_is_a_logistic_regression_of_both_sides_whose_intercept_is_0(scale):
    """Soft labels by duplication: each row once with y = 1 and once with y = 0, weighted by its smoothed label."""
    gap, label = _pairs(3, scale=scale)
    x, y = both_sides(gap, (len(gap) * label + 1) / (len(gap) + 2))
    rows = np.concatenate([x, x])[:, None]
    weights, twice = np.concatenate([y, 1 - y]), np.repeat([1, 0], len(x))
    fitted = LogisticRegression(C=np.inf, tol=1e-10).fit(rows, twice, sample_weight=weights)
    assert fitted.intercept_[0] == pytest.approx(0, abs=1e-6)
    found = fit_calibrator(gap, label, "platt")
    assert found.slope == pytest.approx(fitted.coef_[0, 0], rel=1e-5)
    assert not found.at_bound
    assert np.sign(found.slope) == np.sign(scale)


@pytest.mark.parametrize("seed", range(3))
def test_isotonic_is_that_of_scikit_learn_on_both_sides(seed):
    gap, label = _pairs(seed)
    gap = gap.round(1)  # many equal gaps
    floor = 1 / (len(gap) + 2)
    x, y = both_sides(gap, label)
    expected = IsotonicRegression(out_of_bounds="clip", y_min=floor, y_max=1 - floor).fit(x, y)
    asked = np.random.default_rng(seed).normal(0, 2, 50)
    found = fit_calibrator(gap, label, "isotonic")
    assert found.prob(asked) == pytest.approx(expected.predict(asked), abs=1e-9)


@pytest.mark.parametrize("how", HOW)
def test_swapped_pairs_get_the_other_probability(how):
    gap, label = _pairs(5)
    rng = np.random.default_rng(0)
    swap = rng.uniform(size=len(gap)) < 0.5
    found = fit_calibrator(gap, label, how)
    turned = fit_calibrator(np.where(swap, -gap, gap), np.where(swap, 1 - label, label), how)
    asked = rng.normal(0, 2, 40)
    assert found.prob(-asked) == pytest.approx(1 - found.prob(asked))
    assert turned.prob(asked) == pytest.approx(found.prob(asked), abs=1e-9)
    assert (np.diff(found.prob(np.sort(asked))) >= 0).all()
    assert sigmoid(found.logits(asked)) == pytest.approx(found.prob(asked))


def test_pairs_in_the_order_of_their_labels_are_fitted_as_any_others():
    """Every label 1, as a pairs table has them: an intercept would run away; from both sides there is none."""
    gap, label = _pairs(6)
    chosen_first = np.where(label == 1, gap, -gap)
    for how in HOW:
        ordered = fit_calibrator(chosen_first, np.ones(len(gap)), how)
        assert ordered.prob([0.3, 1.7]) == pytest.approx(fit_calibrator(gap, label, how).prob([0.3, 1.7]), abs=1e-9)


def test_bounds_are_flagged():
    right, wrong = fit_calibrator([1.0, 2.0], [1, 1]), fit_calibrator([1.0, 2.0], [0, 0])
    assert (right.slope, right.at_bound) == (1 / 0.05, True)
    assert (wrong.slope, wrong.at_bound) == (1 / 50, True)
    platt = fit_calibrator([1.0, 2.0], [1, 1], "platt")  # smoothed labels of 3/4: finite
    assert not platt.at_bound
    assert 0 < platt.slope < 2
    assert fit_calibrator([0.01, 0.02], [1, 1], "platt").at_bound
    steps = fit_calibrator([1.0, 2.0], [1, 1], "isotonic")
    assert steps.at_bound
    assert steps.prob([-5, 5]).tolist() == [0.25, 0.75]
    assert not fit_calibrator([1.0, 1.0, 1.0, 1.0], [1, 1, 1, 0], "isotonic").at_bound


def test_soft_labels_count_as_their_votes():
    soft = [fit_calibrator([1.0, -0.5, 2.0], [0.75, 0.5, 1.0], how) for how in ("temperature", "isotonic")]
    votes = ([1.0] * 4 + [-0.5] * 4 + [2.0] * 4, [1, 1, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1])
    assert soft[0].slope == pytest.approx(fit_calibrator(*votes).slope)
    assert soft[1].prob([1.0, 0.5]) == pytest.approx(fit_calibrator(*votes, "isotonic").prob([1.0, 0.5]))


def test_newton_is_bisection_where_it_is_hard():
    """Gaps of very different size: the root of the score all the same."""
    gap = np.array([300.0, -80.0, 0.01, 0.3, -7.0, 25.0])
    label = np.array([1.0, 0.02, 0.0, 1.0, 0.0, 0.7])
    temperature, at_bound = fit_temperature(gap, label)
    assert not at_bound
    assert np.mean(gap * (label - sigmoid(gap / temperature))) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("how", HOW)
def test_calibrating_helps_on_pairs_not_seen(how):
    """Overconfident by a factor of 3: fitted on one half, better on the other by a paired difference clear of 0."""
    gap, label = _pairs(8, 3000, scale=1 / 3)
    signed = np.where(label == 1, gap, -gap)
    names = [f"c{i}" for i in range(3000)]
    first, second = (
        pairs(signed[part], cluster=names[part], group=names[part]) for part in (slice(0, 1500), slice(1500, 3000))
    )
    found = calibrate(first, second, how)
    assert found.calibrator.fitted_on == found.before["nll"].n == 1500
    assert found.difference["nll"].high < 0
    assert found.difference["brier"].high < 0
    assert found.before["ece"].value > found.before["ece_floor"].high
    assert found.after["ece"].value < 0.5 * found.before["ece"].value
    assert found.difference["nll"].value == pytest.approx(found.after["nll"].value - found.before["nll"].value)
    assert found.before["nll"].value == pytest.approx(np.logaddexp(0, -signed[1500:]).mean())
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert set(told) == {"how", "fitted_on", "at_bound", "slope", "before", "after", "difference"}


def test_what_cannot_be_calibrated_is_refused():
    table = pairs([1.0, -1.0, 2.0])
    with pytest.raises(BadInput, match=r"3 clusters are fitted on and judged \(first c0, c1, c2\)"):
        calibrate(table, table)
    other = pairs([1.0], cluster=["x"], tie=[True])
    with pytest.raises(BadInput, match="no labelled pairs to judge"):
        calibrate(table, other)
    with pytest.raises(BadInput, match="no labelled pairs to fit on"):
        calibrate(other, table)
    with pytest.raises(BadInput, match="must be one of temperature, platt, isotonic"):
        fit_calibrator([1.0], [1.0], "beta")
    with pytest.raises(BadInput, match="label has values outside"):
        fit_calibrator([1.0], [np.nan])
