"""Bounded memory: exact while small, within stated bounds beyond."""

import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marginkit.data.survey.grades import centre_and_spread
from marginkit.data.survey.remarks import Worst
from marginkit.data.survey.sketches import ClusterShare, Frequent, Values
from marginkit.evaluation.bootstrap import estimate_mean


def filled(numbers: list[float], limit: int = 50_000) -> Values:
    values = Values(limit)
    for number in numbers:
        values.add(number)
    return values


@given(st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=60))
def test_values_are_exact_while_few_differ(numbers: list[float]) -> None:
    """Counts, ends, median and quantiles of numpy."""
    values = filled(numbers)
    assert (values.n, values.low, values.high) == (len(numbers), min(numbers), max(numbers))
    assert values.distinct == len(set(numbers))
    assert values.median() == np.median(numbers)
    for at in (0.0, 0.05, 0.5, 0.95, 1.0):
        assert values.quantile(at) == np.quantile(numbers, at, method="inverted_cdf")


def test_values_are_a_uniform_sample_beyond() -> None:
    """20,000 rising numbers in a sample of 1,000: the same mean and median within four standard errors."""
    draw = random.Random(1)
    numbers = sorted(draw.gauss(0, 1) for _ in range(20_000))
    values = filled(numbers, 1_000)
    assert not values.exact
    assert values.n == 20_000
    assert values.high == max(numbers)
    at, shares = values.table()
    assert len(at) == 1_000
    assert abs((shares * at).sum() - np.mean(numbers)) < 4 / math.sqrt(1_000)
    assert abs(values.median() - np.median(numbers)) < 4 * 1.2533 / math.sqrt(1_000)


@given(st.lists(st.integers(0, 12), max_size=200), st.integers(1, 6))
def test_frequent_keys_are_never_lost(keys: list[int], capacity: int) -> None:
    """Misra and Gries: count - n / capacity <= kept <= count, so no key above n / capacity is missing."""
    often: Frequent[int] = Frequent(capacity)
    for key in keys:
        often.add(key)
    for key, count in Counter(keys).items():
        kept = often.counts.get(key, 0)
        assert count - len(keys) / (capacity + 1) <= kept <= count
    assert len(often.counts) <= capacity


def test_an_interval_over_buckets_is_that_over_clusters() -> None:
    """300 clusters, the larger the more often right: value equal, ends within a tenth of the width."""
    draw = random.Random(2)
    share, outcomes, clusters = ClusterShare(), [], []
    for cluster in range(300):
        rate = draw.random()
        for _ in range(1 + int(9 * rate)):
            outcomes.append(float(draw.random() < rate))
            clusters.append(cluster)
            share.add(outcomes[-1], cluster * 0x9E3779B97F4A7C15 >> 20)
    mine, theirs = share.estimate(), estimate_mean(outcomes, clusters)
    assert mine is not None
    assert mine.value == pytest.approx(theirs.value)
    width = theirs.high - theirs.low
    assert mine.low == pytest.approx(theirs.low, abs=0.1 * width)
    assert mine.high == pytest.approx(theirs.high, abs=0.1 * width)


def test_few_clusters_get_wilsons_interval() -> None:
    """8 of 10: 0.4902 to 0.9433, the textbook's."""
    share = ClusterShare()
    for outcome in [1.0] * 8 + [0.0] * 2:
        share.add(outcome, 7)
    found = share.estimate()
    assert found is not None
    assert found.clusters == 0
    assert (round(found.low, 4), round(found.high, 4)) == (0.4902, 0.9433)
    assert ClusterShare().estimate() is None


def test_a_wild_value_does_not_move_centre_and_spread() -> None:
    """Median and spread of a normal sample survive 1% of nonsense."""
    draw = random.Random(4)
    numbers = [draw.gauss(5, 2) for _ in range(5_000)] + [1e6] * 50
    middle, spread = centre_and_spread(filled(numbers))
    assert middle == pytest.approx(5, abs=0.15)
    assert spread == pytest.approx(2, abs=0.1)
    assert centre_and_spread(filled([1.0, 2.0, 3.0, 4.0, 100.0]))[1] >= 1.4826


@given(st.lists(st.integers(0, 30).map(float), max_size=50))
def test_worst_keeps_the_largest(sizes: list[float]) -> None:
    """The largest sizes, whatever the order."""
    worst = Worst(5)
    for row, size in enumerate(sizes):
        worst.offer(size, row, str(row), "")
    assert [row.size for row in worst.rows()] == sorted(sizes, reverse=True)[:5]
    assert worst.offered == len(sizes)
