"""Rater noise: closed-form limits, planted variances, and the mean over what a grade may be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import norm

from marginkit.data.rater_noise import fit_rater_noise, pooled_variance, prob_better, shrink
from marginkit.errors import BadInput


def test_limits_of_the_probability():
    """The sheet's: m = 0 gives 1/2, no noise a hard label, many raters Phi -> 0 or 1."""
    assert prob_better(0.0, 3.0) == 0.5
    assert prob_better([2.0, -2.0, 0.0], 0.0).tolist() == [1.0, 0.0, 0.5]
    s2, m = 4.0, 0.5
    p = [float(prob_better(m, s2 * (1 / n + 1 / n))) for n in (1, 10, 100, 10_000)]
    assert p == sorted(p)
    assert p[0] == pytest.approx(norm.cdf(m / np.sqrt(8)))
    assert p[-1] > 1 - 1e-9


@given(st.floats(-6, 6), st.floats(0, 30), st.floats(0.05, 5))
def test_with_gamma_it_is_the_mean_of_the_target_over_what_the_grade_may_be(m, v, gamma):
    made = float(prob_better([m], [v], gamma=gamma)[0])
    if v < 1e-6:
        assert made == pytest.approx(expit(gamma * m), abs=1e-5)
        return
    sd = np.sqrt(v)
    middle = min(max(-m / sd, -9.0), 9.0)
    slow = quad(lambda z: expit(gamma * (m + sd * z)) * norm.pdf(z), -10, 10, points=[middle], limit=500)[0]
    assert made == pytest.approx(slow, abs=1e-7)


def test_noise_shrinks_the_target_toward_one_half_and_a_great_gamma_forgets_gamma():
    p = prob_better([1.5] * 4, [0.0, 1.0, 4.0, 100.0], gamma=1.0)
    assert (np.diff(p) < 0).all()
    assert p[0] == pytest.approx(expit(1.5))
    assert p[-1] > 0.5
    assert prob_better([1.5], [4.0], gamma=1e4)[0] == pytest.approx(float(prob_better(1.5, 4.0)), abs=1e-4)
    assert prob_better([-1.5], [4.0], gamma=1.0)[0] == pytest.approx(1 - p[2])


def test_shrinkage_is_the_posterior_of_a_normal_mean():
    mean, variance = shrink([2.0, 2.0], [1, 4], 3.0, 1.5)
    for n, m, v in zip((1, 4), mean, variance, strict=True):
        precision = 1 / 1.5 + n / 3.0
        assert v == pytest.approx(1 / precision)
        assert m == pytest.approx(2.0 * (n / 3.0) / precision)
    flat_mean, flat_variance = shrink([2.0], [4], 3.0, np.inf)
    assert (flat_mean[0], flat_variance[0]) == (2.0, 0.75)
    nearly_flat = shrink([2.0], [4], 3.0, 1e9)
    assert nearly_flat[0][0] == pytest.approx(2.0)
    assert nearly_flat[1][0] == pytest.approx(0.75)
    assert [value.tolist() for value in shrink([2.0], [4], 0.0, 1.0)] == [[2.0], [0.0]]
    assert [value.tolist() for value in shrink([2.0], [4], 1.0, 0.0)] == [[0.0], [0.0]]


def test_planted_variances_are_found():
    rng = np.random.default_rng(0)
    prompts = []
    for _ in range(3000):
        level = rng.normal(0, 5)  # of the prompt: must not count as spread of grades
        prompts.append(
            [level + rng.normal(0, 1.5) + rng.normal(0, 0.8, rng.integers(1, 4)) for _ in range(rng.integers(2, 5))]
        )
    noise = fit_rater_noise(prompts)
    assert noise.s2 == pytest.approx(0.64, rel=0.05)
    assert noise.t2 == pytest.approx(2.25, rel=0.08)
    assert np.isinf(fit_rater_noise(prompts, flat=True).t2)
    assert noise.to_json()["reliability"] == pytest.approx(noise.t2 / (noise.t2 + noise.s2))


def test_pooled_variance_is_the_definition_and_needs_two_values():
    samples = [np.array([1.0, 2.0, 6.0]), np.array([4.0]), np.array([0.0, 2.0])]
    by_hand = (4 + 1 + 9 + 1 + 1) / (2 + 1)
    assert pooled_variance(samples) == (pytest.approx(by_hand), 2)
    with pytest.raises(BadInput, match="no response has two ratings"):
        pooled_variance([np.array([1.0]), np.array([2.0])])


def test_grades_no_further_apart_than_noise_have_no_spread():
    prompts = [[np.array([0.0, 4.0]), np.array([1.0, 3.0])]]
    assert fit_rater_noise(prompts).t2 == 0.0
