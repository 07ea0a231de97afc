"""LOWESS against a slow reading of its definition, point by point."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marginkit.data.smoothing import lowess
from marginkit.errors import BadInput


def slow_lowess(x, y, fraction, robust):
    """Cleveland's algorithm with a least-squares solver at every point."""
    n = len(x)
    near = min(n, max(2, int(fraction * n + 1e-9)))
    trust = np.ones(n)
    curve = np.zeros(n)
    for turn in range(robust + 1):
        for at in range(n):
            distance = np.abs(x - x[at])
            chosen = sorted(range(n), key=lambda k: (distance[k], k))[:near]
            reach = max(distance[k] for k in chosen)
            weight = np.array([trust[k] * ((1 - (distance[k] / reach) ** 3) ** 3 if reach else 1.0) for k in chosen])
            if weight.sum() <= 0:
                weight = np.ones(near)
            design = np.stack([np.ones(near), x[chosen] - x[at]], axis=1)
            root = np.sqrt(weight)[:, None]
            curve[at] = np.linalg.lstsq(root * design, root[:, 0] * y[chosen], rcond=1e-10)[0][0]
        residual = np.abs(y - curve)
        scale = 6 * np.median(residual)
        if turn == robust or scale <= 1e-12 * (1 + np.abs(y).max()):
            return curve
        trust = (1 - np.minimum(residual / scale, 1) ** 2) ** 2
    return curve


@settings(max_examples=40, deadline=None)
@given(st.integers(5, 40), st.sampled_from([0.3, 0.5, 0.9, 1.0]), st.integers(0, 2), st.integers(0, 10_000))
def test_it_is_cleveland_s_algorithm(n, fraction, robust, seed):
    rng = np.random.default_rng(seed)
    x = np.cumsum(rng.uniform(0.1, 1.0, n))  # no two alike: equal distances would leave the neighbours open
    y = np.sin(x) + rng.normal(0, 0.3, n)
    order = rng.permutation(n)
    made = lowess(x[order], y[order], fraction=fraction, robust=robust, points=None)
    np.testing.assert_allclose(made, slow_lowess(x, y, fraction, robust)[order], atol=1e-6)


def test_a_line_is_kept_and_an_outlier_hardly_moves_the_curve():
    x = np.linspace(0, 10, 200)
    np.testing.assert_allclose(lowess(x, 3 - 2 * x), 3 - 2 * x, atol=1e-9)
    spoilt = 3 - 2 * x + np.random.default_rng(0).normal(0, 0.1, 200)
    spoilt[100] += 500
    robust, plain = lowess(x, spoilt, robust=2), lowess(x, spoilt, robust=0)
    assert np.abs(robust - (3 - 2 * x)).max() < 0.1
    assert np.abs(plain - (3 - 2 * x)).max() > 5


def test_few_places_are_close_to_every_place():
    rng = np.random.default_rng(0)
    x = rng.lognormal(5, 1, 3000)
    y = np.log(x) + rng.normal(0, 1, 3000)
    assert np.abs(lowess(x, y, points=200) - lowess(x, y, points=None)).max() < 0.02


def test_equal_lengths_share_their_mean():
    made = lowess([2.0] * 6, [1.0, 2.0, 3.0, 1.0, 2.0, 3.0], robust=0, fraction=1.0)
    np.testing.assert_allclose(made, 2.0)


@pytest.mark.parametrize(
    ("x", "y", "options"),
    [
        ([1.0, 2.0], [1.0, 2.0], {}),
        ([1.0, 2.0, np.nan], [1.0, 2.0, 3.0], {}),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], {"fraction": 0.0}),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], {"points": 1}),
    ],
)
def test_what_cannot_be_smoothed_is_refused(x, y, options):
    with pytest.raises(BadInput):
        lowess(x, y, **options)
