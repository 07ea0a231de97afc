"""The parts of the Brier score add up, whatever the bins, and mean what they are called."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marginkit.evaluation.brier import brier_parts

PROB = np.array([0.97, 0.92, 0.85, 0.74, 0.66, 0.58, 0.52, 0.45, 0.35, 0.10])
UNIT = st.floats(0, 1)
PAIRS = st.lists(st.tuples(UNIT, st.one_of(st.sampled_from([0.0, 1.0]), UNIT)), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(PAIRS, st.integers(1, 12), st.sampled_from(["confidence", "symmetric"]))
def test_the_parts_add_up_exactly(pairs, bins, form):
    prob, label = np.array(pairs).T
    parts = brier_parts(prob, label, bins, form=form)
    assert parts.brier == pytest.approx(np.mean((prob - label) ** 2), abs=1e-12)
    assert min(parts.reliability, parts.resolution, parts.uncertainty, parts.within_variance) >= 0


def test_worked_parts():
    """Ten pairs; bins of the confidence hold 3, 2, 1, 2 and 2, with 1, 1, 1, 2 and 2 right... and .1 wrong at .9."""
    parts = brier_parts(PROB, np.ones(10))
    assert parts.brier == pytest.approx(0.215480, abs=1e-12)
    assert parts.uncertainty == pytest.approx(0.7 * 0.3)
    confidence, hit = np.maximum(PROB, 1 - PROB), PROB > 0.5
    groups = [[5, 6, 7], [4, 8], [3], [2, 9], [0, 1]]  # (.5, .6], (.6, .7], (.7, .8], (.8, .9], (.9, 1]
    gaps = [(len(own), confidence[own].mean() - hit[own].mean(), hit[own].mean() - 0.7) for own in groups]
    assert parts.reliability == pytest.approx(sum(n * gap**2 for n, gap, _ in gaps) / 10)
    assert parts.resolution == pytest.approx(sum(n * apart**2 for n, _, apart in gaps) / 10)
    assert parts.within_variance == pytest.approx(sum(len(own) * confidence[own].var() for own in groups) / 10)


def test_with_equal_forecasts_in_each_bin_three_parts_are_all():
    prob = np.repeat([0.65, 0.95], [20, 20])
    label = np.concatenate([np.arange(20) < 13, np.arange(20) < 19]).astype(float)
    parts = brier_parts(prob, label)
    assert (parts.within_variance, parts.within_covariance) == pytest.approx((0, 0), abs=1e-12)
    assert parts.reliability == pytest.approx(0, abs=1e-12)  # right as often as confident
    assert parts.brier == pytest.approx(parts.uncertainty - parts.resolution)
    both = brier_parts(prob, label, form="symmetric")
    assert both.brier == pytest.approx(parts.brier)
    assert both.uncertainty == pytest.approx(0.25)


def test_swapping_responses_changes_no_part():
    rng = np.random.default_rng(0)
    prob, label, swap = rng.uniform(size=60), rng.uniform(size=60), rng.uniform(size=60) < 0.5
    turned = brier_parts(np.where(swap, 1 - prob, prob), np.where(swap, 1 - label, label))
    for name in ("reliability", "resolution", "uncertainty", "within_variance", "within_covariance"):
        assert getattr(turned, name) == pytest.approx(getattr(brier_parts(prob, label), name))
