"""Statistics in bounded memory: exact while the data is small, by sample or sketch beyond, and they say which."""

from __future__ import annotations

import math
import random
from array import array
from collections import Counter
from collections.abc import Hashable
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from marginkit.records import Estimate

Array = npt.NDArray[np.float64]
Key = TypeVar("Key", bound=Hashable)
FEWEST_CLUSTERS = 20


class Values:
    """Numbers: all of them while at most `limit` differ, a uniform sample of `limit` beyond.

    Args:
        limit: how many numbers are kept.
        seed: of the sample.

    Example:
        >>> values = Values()
        >>> for value in (1.0, 2.0, 2.0, 5.0):
        ...     values.add(value)
        >>> values.n, values.low, values.high, values.distinct, values.quantile(0.5)
        (4, 1.0, 5.0, 3, 2.0)
    """

    def __init__(self, limit: int = 50_000, seed: int = 0) -> None:
        self._limit = limit
        self._counts: Counter[float] = Counter()
        self._sample = array("d")
        self._draw = random.Random(seed)
        self.n = 0
        self.low, self.high = math.inf, -math.inf
        self.exact = True

    def add(self, value: float) -> None:
        """Take one number."""
        self.n += 1
        self.low, self.high = min(self.low, value), max(self.high, value)
        if self.exact:
            self._counts[value] += 1
            if len(self._counts) > self._limit:
                self._to_sample()
            return
        place = self._draw.randrange(self.n)
        if place < self._limit:
            self._sample[place] = value

    def _to_sample(self) -> None:
        whole = list(self._counts.elements())
        self._sample = array("d", self._draw.sample(whole, self._limit))
        self._counts.clear()
        self.exact = False

    @property
    def distinct(self) -> int:
        """How many different numbers there are; at least so many where they are a sample."""
        return len(self._counts) if self.exact else len(set(self._sample))

    def table(self) -> tuple[Array, Array]:
        """Sorted distinct values and the share of each."""
        if self.exact:
            values = np.array(sorted(self._counts), np.float64)
            counts = np.array([self._counts[value] for value in values], np.float64)
        else:
            values, found = np.unique(np.array(self._sample, np.float64), return_counts=True)
            counts = found.astype(np.float64)
        return values, counts / max(1.0, counts.sum())

    def quantile(self, at: float) -> float:
        """The smallest value that at least this share of the numbers does not exceed; NaN where there are none."""
        values, shares = self.table()
        if not len(values):
            return math.nan
        return float(values[min(len(values) - 1, int(np.searchsorted(np.cumsum(shares), at - 1e-12)))])

    def median(self) -> float:
        """The middle number, or the mean of the two in the middle; NaN where there are none."""
        values, shares = self.table()
        if not len(values):
            return math.nan
        reached = np.cumsum(shares)
        low, high = (
            float(values[min(len(values) - 1, int(np.searchsorted(reached, at)))]) for at in (0.5 - 1e-12, 0.5 + 1e-12)
        )
        return (low + high) / 2 if math.isfinite(low + high) else low / 2 + high / 2

    def percentiles(self) -> dict[str, float] | None:
        """5, 25, 50, 75, 95 and 99%, and the largest; None where there are no numbers."""
        if not self.n:
            return None
        return {f"p{p}": self.quantile(p / 100) for p in (5, 25, 50, 75, 95, 99)} | {"max": self.high}


class Frequent(Generic[Key]):
    """The keys that come often (Misra and Gries 1982): any key of more than n / capacity of all is among them.

    The kept count is at most n / capacity too small, and exact as long as at most `capacity` keys were seen.

    Args:
        capacity: how many keys are remembered.

    Example:
        >>> often = Frequent(2)
        >>> for key in "abacad":
        ...     _ = often.add(key)
        >>> "a" in often.counts, often.exact
        (True, False)
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.counts: dict[Key, int] = {}
        self.exact = True

    def add(self, key: Key) -> list[Key]:
        """Count one key.

        Returns:
            The keys that were forgotten to make room.
        """
        if key in self.counts or len(self.counts) < self._capacity:
            self.counts[key] = self.counts.get(key, 0) + 1
            return []
        self.exact = False
        gone = [known for known, count in self.counts.items() if count == 1]
        self.counts = {known: count - 1 for known, count in self.counts.items() if count > 1}
        return [*gone, key]


class ClusterShare:
    """A share with its 95% bootstrap interval over clusters, in the memory of a few thousand numbers.

    Clusters fall into buckets by their hash; whole buckets are drawn. Buckets are unions of clusters, so they are as
    independent as these; with more clusters than buckets the interval stays right and only its own error grows.

    Args:
        buckets: how many.

    Example:
        >>> share = ClusterShare()
        >>> for cluster in range(100):
        ...     share.add(float(cluster % 4 > 0), cluster)
        >>> print(share.estimate())
        0.750 [0.660, 0.830]
    """

    def __init__(self, buckets: int = 8192) -> None:
        self._hits, self._total = [0.0] * buckets, [0.0] * buckets
        self._buckets = buckets
        self.n = 0

    def add(self, hit: float, cluster: int) -> None:
        """Take one outcome in [0, 1] of one cluster (a well-mixed integer)."""
        place = cluster % self._buckets
        self._hits[place] += hit
        self._total[place] += 1.0
        self.n += 1

    def estimate(self, resamples: int = 1000, seed: int = 0) -> Estimate | None:
        """The share and its interval: over pairs (Wilson's, `clusters` 0) below 20 clusters; None where n is 0."""
        if not self.n:
            return None
        total = np.array(self._total)
        used = np.flatnonzero(total)
        hits, total = np.array(self._hits)[used], total[used]
        value = float(hits.sum() / total.sum())
        if len(used) < FEWEST_CLUSTERS:
            low, high = _wilson(value, self.n)
            return Estimate(value, low, high, self.n, 0)
        generator = np.random.default_rng(seed)
        drawn = np.empty(resamples)
        for number in range(resamples):
            weights = np.bincount(generator.integers(len(used), size=len(used)), minlength=len(used))
            drawn[number] = (weights @ hits) / (weights @ total)
        low, high = np.quantile(drawn, [0.025, 0.975])
        return Estimate(value, float(low), float(high), self.n, len(used))


def _wilson(value: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95% interval of a share of n independent outcomes."""
    middle = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n))
    return middle - half, middle + half
