"""Intervals: do they cover, do they respect clusters, do they match what is known."""

import time

import numpy as np
import pytest

from marginkit.errors import BadInput
from marginkit.evaluation.bootstrap import (
    cluster_bootstrap,
    drawn_units,
    estimate,
    estimate_mean,
    estimates,
    mean_of,
    replicates,
    slope_through_zero,
    units,
)


def test_interval_of_a_mean_covers_it_on_clustered_data():
    """95% intervals hold the true mean (0) in 88% to 99% of simulations, where rows share their cluster's effect."""
    rng = np.random.default_rng(0)
    covered, covered_by_rows = [], []
    for _ in range(200):
        sizes = rng.integers(1, 6, size=60)
        clusters = np.repeat(np.arange(60), sizes)
        x = rng.normal(size=60)[clusters] + 0.5 * rng.normal(size=len(clusters))
        by_cluster = estimate_mean(x, clusters, resamples=300)
        by_row = estimate_mean(x, np.arange(len(x)), resamples=300)
        covered.append(by_cluster.low <= 0 <= by_cluster.high)
        covered_by_rows.append(by_row.low <= 0 <= by_row.high)
    assert 0.88 <= np.mean(covered) <= 0.99
    assert np.mean(covered_by_rows) < 0.85  # what ignoring the clusters would have claimed


def test_duplicated_rows_add_no_information():
    """Each of 100 rows four times over: the interval stays that of 100 rows, and is wider than that of 400."""
    x = np.random.default_rng(1).normal(size=100)
    once = estimate_mean(x, np.arange(100))
    copied = estimate_mean(np.repeat(x, 4), np.repeat(np.arange(100), 4))
    pretended = estimate_mean(np.repeat(x, 4), np.arange(400))
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high))
    assert copied.high - copied.low > 1.7 * (pretended.high - pretended.low)
    assert (copied.n, copied.clusters) == (400, 100)


def test_standard_error_of_a_mean():
    x = np.random.default_rng(2).normal(size=400)
    drawn = replicates(mean_of(x), np.arange(400), resamples=4000)
    assert drawn.std() == pytest.approx(x.std() / 20, rel=0.05)
    found = estimate_mean(x, np.arange(400), resamples=4000)
    assert found.high - found.low == pytest.approx(2 * 1.96 * x.std() / 20, rel=0.05)


def test_fewer_than_twenty_clusters_means_rows():
    assert units(np.arange(40) % 19)[1] == 0
    assert len(set(units(np.arange(40) % 19)[0])) == 40
    assert units(np.arange(40) % 20)[1] == 20
    assert estimate_mean(np.arange(40.0), np.arange(40) % 19).clusters == 0


def test_names_of_clusters_do_not_matter():
    x = np.random.default_rng(3).normal(size=90)
    assert estimate_mean(x, [f"p{i // 3:02d}" for i in range(90)]) == estimate_mean(x, [i // 3 for i in range(90)])


def test_same_seed_same_interval_and_blocks_do_not_change_it(monkeypatch):
    x = np.random.default_rng(4).normal(size=50)
    whole = estimate_mean(x, np.arange(50), seed=5)
    assert estimate_mean(x, np.arange(50), seed=6) != whole
    monkeypatch.setattr("marginkit.evaluation.bootstrap._WEIGHTS_AT_ONCE", 350)
    cut = estimate_mean(x, np.arange(50), seed=5)  # the same draws; a product of another shape may round otherwise
    assert (cut.value, cut.low, cut.high) == pytest.approx((whole.value, whole.low, whole.high), rel=1e-12)


def test_weighted_mean_and_its_limits():
    x, w = np.array([1.0, 2.0, 4.0]), np.array([1.0, 0.0, 3.0])
    assert estimate_mean(x, [0, 1, 2], w).value == pytest.approx(13 / 4)
    nothing = estimate_mean([], [])
    assert np.isnan([nothing.value, nothing.low, nothing.high]).all()
    assert (nothing.n, nothing.clusters) == (0, 0)
    single = estimate_mean([3.0], ["a"])
    assert single.value == 3
    assert np.isnan([single.low, single.high]).all()


@pytest.mark.parametrize(
    ("values", "clusters", "weights"),
    [([1.0, np.nan], [0, 1], None), ([1.0], [0, 1], None), ([1.0, 2.0], [0, 1], [-1, 2])],
)
def test_bad_rows_are_refused(values, clusters, weights):
    with pytest.raises(BadInput):
        estimate_mean(values, clusters, weights)


def test_bad_options_are_refused():
    with pytest.raises(BadInput, match="level"):
        cluster_bootstrap(mean_of([1.0, 2.0]), [0, 1], level=95)
    with pytest.raises(BadInput, match="resamples"):
        estimate_mean([1.0, 2.0], [0, 1], resamples=0)


def test_slope_ignores_which_response_is_called_chosen():
    rng = np.random.default_rng(7)
    x = rng.normal(size=50)
    y, flip = 0.7 * x + rng.normal(size=50), rng.choice([-1, 1], size=50)
    ones = np.ones((1, 50))
    assert slope_through_zero(y, x)(ones)[0] == pytest.approx(np.linalg.lstsq(x[:, None], y)[0][0])
    assert slope_through_zero(flip * y, flip * x)(ones) == pytest.approx(slope_through_zero(y, x)(ones))


def test_five_thousand_pairs_take_well_under_a_second():
    x = np.random.default_rng(8).normal(size=5000)
    started = time.perf_counter()
    estimate_mean(x, np.arange(5000) // 2, resamples=1000)
    assert time.perf_counter() - started < 1


def test_intervals_are_those_of_the_plain_bootstrap():
    """Sums by cluster and one matrix product give what resampling the rows one by one gives, on the same draw."""
    rng = np.random.default_rng(9)
    clusters = rng.integers(0, 40, 150)
    x = rng.normal(size=150)
    names, code = np.unique(clusters, return_inverse=True)
    members = [np.flatnonzero(code == own) for own in range(len(names))]
    drawn = np.random.default_rng(3).integers(len(names), size=(300, len(names)))
    plain = [np.concatenate([x[members[own]] for own in row]).mean() for row in drawn]
    assert replicates(mean_of(x), clusters, resamples=300, seed=3) == pytest.approx(np.array(plain))


def test_statistics_asked_together_are_those_asked_alone():
    rng = np.random.default_rng(10)
    x, clusters = rng.normal(size=90), rng.integers(0, 30, 90)
    asked = {"mean": mean_of(x), "slope": slope_through_zero(x, x + rng.normal(size=90)), "square": mean_of(x * x)}
    together = estimates(asked, clusters, resamples=50, seed=1)
    for name, statistic in asked.items():
        alone = estimate(statistic, clusters, resamples=50, seed=1)
        assert (together[name].value, together[name].low, together[name].high) == pytest.approx(
            (alone.value, alone.low, alone.high)
        )


def test_blocks_of_clusters_give_the_interval_of_the_clusters(monkeypatch):
    """400 blocks of 10 clusters each against all 4,000: the same standard error, up to the noise of either."""
    rng = np.random.default_rng(11)
    clusters = np.repeat(np.arange(4000), rng.integers(1, 4, 4000))
    x = rng.normal(size=4000)[clusters] + rng.normal(size=len(clusters))
    whole = replicates(mean_of(x), clusters, resamples=2000)
    exact = np.sqrt((np.bincount(clusters, x - x.mean()) ** 2).sum()) / len(x)
    monkeypatch.setattr("marginkit.evaluation.bootstrap.MOST_UNITS", 400)
    unit, count = drawn_units(clusters)
    assert count == 400
    assert {len(set(clusters[unit == own])) for own in range(400)} == {10}
    assert all(len(set(unit[clusters == own])) == 1 for own in range(0, 4000, 97))  # clusters stay whole
    blocks = replicates(mean_of(x), clusters, resamples=2000)
    assert whole.std() == pytest.approx(exact, rel=0.06)
    assert blocks.std() == pytest.approx(exact, rel=0.12)
    assert estimate_mean(x, clusters).clusters == 4000  # what is said is what was there


def test_codes_of_clusters_do_not_depend_on_how_they_are_named():
    """Dense integers take a shorter way than names; the codes are the same."""
    rng = np.random.default_rng(12)
    dense = rng.integers(0, 300, 500)
    assert (units(dense)[0] == units(dense * 1_000_003)[0]).all()
    assert (units(dense)[0] == np.unique(dense, return_inverse=True)[1]).all()
    assert (units(dense - 5)[0] == units(dense)[0]).all()
