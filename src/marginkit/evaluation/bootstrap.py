"""Intervals by resampling clusters: pairs that share a prompt are not independent, so prompts are what is drawn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from marginkit.errors import BadInput
from marginkit.records import Estimate

Array = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]
Statistic = Callable[[Array], Array]
"""A number as a function of row weights: `[resample, row] -> [resample]`."""

FEWEST_CLUSTERS = 20
_WEIGHTS_AT_ONCE = 4_000_000  # numbers in one block of weights: 32 MB


def units(clusters: npt.ArrayLike) -> tuple[Codes, int]:
    """What is resampled: clusters, or single rows where there are fewer than 20 clusters.

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
    names, codes = np.unique(np.asarray(clusters), return_inverse=True)
    if len(names) < FEWEST_CLUSTERS:
        return np.arange(len(codes)), 0
    return codes, len(names)


def replicates(statistic: Statistic, clusters: npt.ArrayLike, *, resamples: int = 1000, seed: int = 0) -> Array:
    """The statistic on resamples of the clusters, drawn with replacement.

    Args:
        statistic: maps row weights `[resample, row]`, how often each row's cluster was drawn, to `[resample]`.
        clusters: `[row]`, the cluster of each row.
        resamples: how many.
        seed: of the draw; equal seeds and clusters give equal weights, so statistics can be compared resample by
            resample.

    Returns:
        `[resamples]`.

    Example:
        >>> x = np.arange(100.0)
        >>> means = replicates(lambda w: w @ x / w.sum(1), range(100))
        >>> means.shape, bool(abs(means.mean() - x.mean()) < 0.3)
        ((1000,), True)
    """
    if resamples < 1:
        raise BadInput(f"resamples is {resamples}: it must be at least 1")
    codes, _ = units(clusters)
    count = int(codes.max()) + 1
    block = max(1, _WEIGHTS_AT_ONCE // len(codes))
    generator = np.random.default_rng(seed)
    found = []
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = generator.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)
        found.append(statistic(weights[:, codes]))
    return np.concatenate(found)


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
        statistic: maps row weights `[resample, row]` to `[resample]`.
        clusters: `[row]`, the cluster of each row; under 20 different ones, rows are drawn instead.
        resamples: how many draws.
        seed: of the draw.
        level: coverage aimed at, in (0, 1).

    Returns:
        `(low, high)`, NaN with fewer than two rows.

    Raises:
        BadInput: `level` is outside (0, 1) or `resamples` is below 1.

    Example:
        >>> x = np.repeat([0.0, 1.0], 50)
        >>> low, high = cluster_bootstrap(lambda w: w @ x / w.sum(1), range(100))
        >>> round(low, 1), round(high, 1)
        (0.4, 0.6)

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3; clusters as Field and Welsh
    (2007). Deviation: rows below 20 clusters, where an interval over clusters covers too little.
    """
    if not 0 < level < 1:
        raise BadInput(f"level is {level}: a coverage lies between 0 and 1, for example 0.95")
    if np.size(np.asarray(clusters)) < 2:
        return float("nan"), float("nan")
    drawn = replicates(statistic, clusters, resamples=resamples, seed=seed)
    drawn = drawn[~np.isnan(drawn)]  # a resample may hold nothing to judge
    if not len(drawn):
        return float("nan"), float("nan")
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def estimate(statistic: Statistic, clusters: npt.ArrayLike, *, resamples: int = 1000, seed: int = 0) -> Estimate:
    """A statistic with its 95% interval over clusters.

    Args:
        statistic: maps row weights `[resample, row]` to `[resample]`; equal weights give the value itself.
        clusters: `[row]`, the cluster of each row.
        resamples: how many draws.
        seed: of the draw.

    Returns:
        The estimate; all NaN and n = 0 where there are no rows.

    Example:
        >>> x = np.arange(100.0)
        >>> found = estimate(lambda w: w @ x / w.sum(1), range(100))
        >>> found.value, found.n, found.clusters
        (49.5, 100, 100)
    """
    clusters = np.asarray(clusters)
    if not len(clusters):
        return Estimate(float("nan"), float("nan"), float("nan"), 0, 0)
    value = float(statistic(np.ones((1, len(clusters))))[0])
    low, high = cluster_bootstrap(statistic, clusters, resamples=resamples, seed=seed)
    return Estimate(value, low, high, len(clusters), units(clusters)[1])


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
    total = np.stack([w * x, w], axis=1)

    return estimate(lambda drawn: _ratio(*(drawn @ total).T), groups, resamples=resamples, seed=seed)


def slope_through_zero(y: npt.ArrayLike, x: npt.ArrayLike) -> Statistic:
    """Least-squares slope of y on x, `sum(x y) / sum(x^2)`, as a function of row weights.

    Through 0, so that turning a pair round (both signs change) changes nothing.

    Example:
        >>> slope_through_zero([2.0, 4.0], [1.0, 2.0])(np.ones((1, 2))).tolist()
        [2.0]
    """
    a, b = np.asarray(y, np.float64), np.asarray(x, np.float64)
    sums = np.stack([a * b, b * b], axis=1)
    return lambda weights: _ratio(*(weights @ sums).T)


def rank_correlation(x: npt.ArrayLike, y: npt.ArrayLike) -> Statistic:
    """Spearman's rank correlation as a function of row weights; ties get the middle rank, weights count as repeats.

    Example:
        >>> rank_correlation([1.0, 2.0, 9.0], [0.1, 0.2, 0.3])(np.ones((1, 3))).round(6).tolist()
        [1.0]
    """
    rank_x, rank_y = _midranks(np.asarray(x)), _midranks(np.asarray(y))

    def statistic(weights: Array) -> Array:
        total = weights.sum(1, keepdims=True)
        a, b = rank_x(weights) / total - 0.5, rank_y(weights) / total - 0.5  # middle ranks average one half exactly
        spread = (weights * a * a).sum(1) * (weights * b * b).sum(1)
        return _ratio((weights * a * b).sum(1), np.sqrt(spread))

    return statistic


def _midranks(x: Array) -> Statistic:
    """Weight below each value plus half the weight at it, `[resample, row] -> [resample, row]`."""
    order = np.argsort(x, kind="stable")
    _, first, position = np.unique(x[order], return_index=True, return_inverse=True)
    back = np.empty_like(position)
    back[order] = position

    def ranks(weights: Array) -> Array:
        at = np.add.reduceat(weights[:, order], first, axis=1)
        return np.asarray((np.cumsum(at, axis=1) - at / 2)[:, back])

    return ranks


def _ratio(above: Array, below: Array) -> Array:
    """Quotient; NaN for 0 / 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(above / below)
