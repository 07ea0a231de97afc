"""Intervals by resampling clusters: pairs that share a prompt are not independent, so prompts are what is drawn.

What is drawn are numbers that are functions of *sums over rows*: a mean is the ratio of two sums, a calibration error a
function of one sum a bin. Rows are summed to clusters once, and a resample is then one row of a matrix product, however
many pairs there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from marginkit.errors import BadInput
from marginkit.records import Estimate

Array = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

FEWEST_CLUSTERS = 20
MOST_UNITS = 20_000
"""Clusters above which they are thrown together, at random, into this many blocks, and blocks are drawn."""
_WEIGHTS_AT_ONCE = 4_000_000  # numbers in one block of weights: 32 MB


@dataclass(frozen=True, slots=True)
class Statistic:
    """A number as a function of sums over rows.

    Called on row weights `[resample, row]` it gives `[resample]`, by one product with all rows: for small tables.

    Args:
        rows: how many rows there are.
        sums: `(unit [row], count) -> [count, k]`: what the rows of each unit add up to.
        value: `[..., k] -> [...]`: the number, from the sums over everything.

    Example:
        >>> spread = of_sums(lambda total: total[..., 1] / total[..., 0], np.ones(3), np.array([1.0, 2.0, 6.0]))
        >>> spread(np.ones((1, 3))).tolist()
        [3.0]
    """

    rows: int
    sums: Callable[[Codes, int], Array]
    value: Callable[[Array], Array]

    def __call__(self, weights: Array) -> Array:
        """The number on each resample, `[resample, row] -> [resample]`."""
        return self.value(weights @ self.sums(np.arange(self.rows), self.rows))


def of_sums(value: Callable[[Array], Array], *columns: npt.ArrayLike) -> Statistic:
    """A statistic of the sums of columns; `value` maps `[..., column] -> [...]`.

    Example:
        >>> of_sums(lambda total: total[..., 0], [1.0, 2.0])(np.array([[1.0, 1.0], [2.0, 0.0]])).tolist()
        [3.0, 2.0]
    """
    given = [np.asarray(column, dtype=np.float64) for column in columns]

    def sums(unit: Codes, count: int) -> Array:
        return np.stack([np.bincount(unit, weights=column, minlength=count) for column in given], axis=1)

    return Statistic(len(given[0]), sums, value)


def mean_of(values: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Statistic:
    """The mean of `[row]` values, `sum(weight * value) / sum(weight)`.

    Example:
        >>> mean_of([1.0, 2.0])(np.array([[3.0, 1.0]])).tolist()
        [1.25]
    """
    x = np.asarray(values, dtype=np.float64)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64)
    return of_sums(lambda total: ratio(total[..., 0], total[..., 1]), w * x, w)


def slope_through_zero(y: npt.ArrayLike, x: npt.ArrayLike) -> Statistic:
    """Least-squares slope of y on x, `sum(x y) / sum(x^2)`.

    Through 0, so that turning a pair round (both signs change) changes nothing.

    Example:
        >>> slope_through_zero([2.0, 4.0], [1.0, 2.0])(np.ones((1, 2))).tolist()
        [2.0]
    """
    a, b = np.asarray(y, np.float64), np.asarray(x, np.float64)
    return of_sums(lambda total: ratio(total[..., 0], total[..., 1]), a * b, b * b)


def ratio(above: Array, below: Array) -> Array:
    """Quotient; NaN for 0 / 0.

    Example:
        >>> ratio(np.array([1.0, 0.0]), np.array([2.0, 0.0])).tolist()
        [0.5, nan]
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(above / below)


def units(clusters: npt.ArrayLike) -> tuple[Codes, int]:
    """What is independent: clusters, or single rows where there are fewer than 20 clusters.

    Args:
        clusters: `[row]`, the cluster of each row (integers or strings).

    Returns:
        `[row]` codes from 0, and the number of clusters (0 where the rows stand for themselves).

    Example:
        >>> units(["a", "a", "b"])
        (array([0, 1, 2]), 0)
        >>> units([7, 7, *range(100, 119)])[1]
        20
    """
    codes, count = _ranked(np.asarray(clusters))
    if count < FEWEST_CLUSTERS:
        return np.arange(len(codes)), 0
    return codes, count


def drawn_units(clusters: npt.ArrayLike) -> tuple[Codes, int]:
    """What is drawn: `units`, thrown together at random into 20,000 blocks of equal size (to one) where there are more.

    Blocks hold whole clusters, so they are as independent as the clusters are, and the bootstrap over blocks estimates
    the same variance: that of a sum of independent parts. It does so with 20,000 of them, whose own noise is below 1%.

    Args:
        clusters: `[row]`, the cluster of each row.

    Returns:
        `[row]` codes from 0, and how many units there are.

    Example:
        >>> codes, count = drawn_units(np.arange(50_000))
        >>> count, np.bincount(codes).min(), np.bincount(codes).max()
        (20000, np.int64(2), np.int64(3))
    """
    codes, independent = units(clusters)
    count = independent or len(codes)
    if count <= MOST_UNITS:
        return codes, count
    block = np.random.default_rng(0).permutation(count) % MOST_UNITS  # the same blocks whatever the seed of the draw
    return block[codes], MOST_UNITS


def _ranked(names: npt.NDArray[np.generic]) -> tuple[Codes, int]:
    """Codes from 0 in the order of the names, and how many there are."""
    if names.size and names.dtype.kind in "iu" and names.min() >= 0 and names.max() < 4 * len(names):
        present = np.bincount(names.astype(np.int64)) > 0  # no sorting where codes are dense already
        return (np.cumsum(present) - 1)[names], int(present.sum())
    found, codes = np.unique(names, return_inverse=True)
    return codes, len(found)


def replicates(statistic: Statistic, clusters: npt.ArrayLike, *, resamples: int = 1000, seed: int = 0) -> Array:
    """The statistic on resamples of the clusters, drawn with replacement.

    Args:
        statistic: a function of sums over the rows.
        clusters: `[row]`, the cluster of each row.
        resamples: how many.
        seed: of the draw; equal seeds and clusters give equal weights, so statistics can be compared resample by
            resample.

    Returns:
        `[resamples]`.

    Example:
        >>> x = np.arange(100.0)
        >>> means = replicates(mean_of(x), range(100))
        >>> means.shape, bool(abs(means.mean() - x.mean()) < 0.3)
        ((1000,), True)
    """
    unit, count = drawn_units(clusters)
    totals = statistic.sums(unit, count)
    return _replicates({"": (statistic, totals)}, count, resamples, seed)[""]


def _replicates(
    asked: Mapping[str, tuple[Statistic, Array]], count: int, resamples: int, seed: int
) -> dict[str, Array]:
    """Every statistic on the same resamples: one draw of weights, one matrix product with all sums at once."""
    if resamples < 1:
        raise BadInput(f"resamples is {resamples}: it must be at least 1")
    together = np.concatenate([total for _, total in asked.values()], axis=1)
    ends = np.cumsum([total.shape[1] for _, total in asked.values()])
    block = max(1, _WEIGHTS_AT_ONCE // count)
    generator = np.random.default_rng(seed)
    found: dict[str, list[Array]] = {name: [] for name in asked}
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = generator.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        totals = weights.astype(np.float64) @ together
        for (name, (statistic, _)), part in zip(asked.items(), np.split(totals, ends[:-1], axis=1), strict=True):
            found[name].append(statistic.value(part))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _percentiles(drawn: Array, level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of the replicates; NaN where there are none."""
    drawn = drawn[~np.isnan(drawn)]  # a resample may hold nothing to judge
    if not len(drawn):
        return float("nan"), float("nan")
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def cluster_bootstrap(
    statistic: Statistic,
    clusters: npt.ArrayLike,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of a statistic over clusters.

    `[q((1 - level) / 2), q((1 + level) / 2)]` of the statistic on clusters drawn with replacement.

    Args:
        statistic: a function of sums over the rows.
        clusters: `[row]`, the cluster of each row; under 20 different ones, rows are drawn instead; above 20,000,
            random blocks of them (`drawn_units`).
        resamples: how many draws.
        seed: of the draw.
        level: coverage aimed at, in (0, 1).

    Returns:
        `(low, high)`, NaN with fewer than two rows.

    Raises:
        BadInput: `level` is outside (0, 1) or `resamples` is below 1.

    Example:
        >>> low, high = cluster_bootstrap(mean_of(np.repeat([0.0, 1.0], 50)), range(100))
        >>> round(low, 1), round(high, 1)
        (0.4, 0.6)

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3; clusters as Field and Welsh
    (2007). Deviation: rows below 20 clusters, where an interval over clusters covers too little; blocks above 20,000.
    """
    if not 0 < level < 1:
        raise BadInput(f"level is {level}: a coverage lies between 0 and 1, for example 0.95")
    if np.size(np.asarray(clusters)) < 2:
        return float("nan"), float("nan")
    return _percentiles(replicates(statistic, clusters, resamples=resamples, seed=seed), level)


def estimates(
    statistics: Mapping[str, Statistic], clusters: npt.ArrayLike, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Several statistics of the same rows, each with its 95% interval over clusters; the clusters are drawn once.

    Args:
        statistics: name -> a function of sums over the rows.
        clusters: `[row]`, the cluster of each row.
        resamples: how many draws.
        seed: of the draw.

    Returns:
        The estimates; all NaN and n = 0 where there are no rows.

    Example:
        >>> x = np.arange(100.0)
        >>> found = estimates({"mean": mean_of(x), "square": mean_of(x * x)}, range(100))
        >>> found["mean"].value, found["square"].value, found["mean"].clusters
        (49.5, 3283.5, 100)
    """
    groups = np.asarray(clusters)
    if not len(groups):
        return {name: Estimate(float("nan"), float("nan"), float("nan"), 0, 0) for name in statistics}
    if not statistics:
        return {}
    independent = units(groups)[1]
    unit, count = drawn_units(groups)
    asked = {name: (statistic, statistic.sums(unit, count)) for name, statistic in statistics.items()}
    drawn = _replicates(asked, count, resamples, seed) if len(groups) > 1 else {}
    found = {}
    for name, (statistic, total) in asked.items():
        low, high = _percentiles(drawn[name]) if drawn else (float("nan"), float("nan"))
        found[name] = Estimate(float(statistic.value(total.sum(0))), low, high, len(groups), independent)
    return found


def estimate(statistic: Statistic, clusters: npt.ArrayLike, *, resamples: int = 1000, seed: int = 0) -> Estimate:
    """A statistic with its 95% interval over clusters; see `estimates`.

    Example:
        >>> found = estimate(mean_of(np.arange(100.0)), range(100))
        >>> found.value, found.n, found.clusters
        (49.5, 100, 100)
    """
    return estimates({"": statistic}, clusters, resamples=resamples, seed=seed)[""]


def estimate_mean(
    values: npt.ArrayLike,
    clusters: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """A mean with its 95% interval over clusters: `sum(weight * value) / sum(weight)`.

    Args:
        values: `[row]`.
        clusters: `[row]`, the cluster of each row.
        weights: `[row]`, at least 0; equal if None.
        resamples: how many draws.
        seed: of the draw.

    Returns:
        The estimate, in the unit of `values`; all NaN and n = 0 where there are no rows.

    Raises:
        BadInput: the lengths differ, a value is not finite, or a weight is negative.

    Example:
        >>> print(estimate_mean([1, 0, 1, 1], clusters=[1, 2, 3, 4]))
        0.750 [0.250, 1.000]
    """
    x = np.asarray(values, dtype=np.float64)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64)
    groups = np.asarray(clusters)
    if not (x.ndim == 1 and x.shape == w.shape == groups.shape):
        raise BadInput(f"values {x.shape}, weights {w.shape} and clusters {groups.shape}: one each per row")
    if not np.isfinite(x).all() or not np.isfinite(w).all() or (w < 0).any():
        raise BadInput("values and weights must be finite, weights at least 0: leave rows without a value out")
    return estimate(mean_of(x, w), groups, resamples=resamples, seed=seed)
