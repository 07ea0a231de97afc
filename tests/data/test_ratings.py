"""Maps of a scale and weighted aspects: against a slow reading of their definitions, and back again."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import logistic, norm

from marginkit.data.ratings import ASPECT_WEIGHTS, fit_map, weigh_aspects
from marginkit.errors import BadInput

GRADES = st.lists(st.integers(-8, 8).map(lambda n: n / 2), min_size=2, max_size=30)


def slow_share(values, value):
    """The share of grades below, equal ones counted half, one by one."""
    return sum(1.0 if other < value else 0.5 if other == value else 0.0 for other in values) / len(values)


@given(GRADES)
def test_quantile_is_the_logit_of_the_share_below(values):
    made = fit_map(np.array(values), "quantile").forward(np.array(values))
    normal = fit_map(np.array(values), "quantile_normal").forward(np.array(values))
    shares = [slow_share(values, value) for value in values]
    np.testing.assert_allclose(made, logistic.ppf(shares), atol=1e-9)
    np.testing.assert_allclose(normal, norm.ppf(shares), atol=1e-9)


@given(GRADES, st.sampled_from(["linear", "zscore", "quantile", "quantile_normal"]))
def test_every_map_is_increasing_and_gives_the_grades_back(values, name):
    grades = np.array(values)
    if len(set(values)) == 1 and name == "zscore":
        return
    found = fit_map(grades, name)
    made = found.forward(grades)
    np.testing.assert_allclose(found.invert(made), grades, atol=1e-9)
    order = np.argsort(grades)
    steps, grown = np.diff(grades[order]), np.diff(made[order])
    assert ((grown > 0) == (steps > 0)).all()


def test_zscore_has_mean_0_and_sd_1_and_leaves_out_what_is_absent():
    grades = np.array([1.0, 2.0, np.nan, 5.0, 8.0])
    made = fit_map(grades, "zscore").forward(grades[~np.isnan(grades)])
    assert abs(made.mean()) < 1e-12
    assert abs(made.std() - 1) < 1e-12


def test_the_log_map_gives_log_ratios_and_raises_counts_below_one():
    found = fit_map(np.array([3.0]), "log", prior=0.0)
    made = found.forward(np.array([400.0, 200.0, 0.0, -7.0]))
    assert made[0] - made[1] == pytest.approx(math.log(2))
    assert made[2] == made[3] == 0.0
    assert found.invert(made[:2]) == pytest.approx([400, 200])


@pytest.mark.parametrize(
    ("values", "name", "prior", "words"),
    [
        ([2.0, 2.0], "zscore", 1.0, "no spread"),
        ([np.nan], "linear", 1.0, "no grade"),
        ([1.0], "log", -1.0, "prior"),
        ([1.0], "cubic", 1.0, "the maps are linear, zscore"),
    ],
)
def test_a_map_that_cannot_be_fitted_is_refused(values, name, prior, words):
    with pytest.raises(BadInput, match=words):
        fit_map(np.array(values), name, prior=prior)


def test_aspects_are_weighed_by_the_stated_weights():
    row = {"helpfulness": 4.0, "correctness": 4.0, "coherence": 4.0, "complexity": 1.0, "verbosity": 2.0}
    made = weigh_aspects([row], ASPECT_WEIGHTS["helpsteer2_70b"])
    assert made[0] == pytest.approx(0.65 * 4 + 0.8 * 4 + 0.45 * 4 + 0.55 * 1 - 0.4 * 2)
    wordier = weigh_aspects([row | {"verbosity": 3.0}], ASPECT_WEIGHTS["helpsteer2_70b"])
    assert wordier[0] < made[0]


def test_a_missing_aspect_is_no_grade_and_an_unknown_one_is_refused():
    assert np.isnan(weigh_aspects([{"a": 1.0}, {"a": 1.0, "b": 2.0}], {"a": 1.0, "b": 1.0})[0])
    with pytest.raises(BadInput, match="'helpfullness', which no response has; the data has helpfulness"):
        weigh_aspects([{"helpfulness": 1.0}], {"helpfullness": 1.0})
    with pytest.raises(BadInput, match="weights is empty"):
        weigh_aspects([{"helpfulness": 1.0}], {})
