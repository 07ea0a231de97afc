"""Is the confidence right? Calibration of pairwise probabilities, bin by bin.

In the confidence form, the default, a pair's forecast is its confidence `max(p, 1 - p)` and its outcome the probability
that the side the model prefers is the better one, `y` if `p > 1/2`, else `1 - y`. So a pair counts the same whichever
response comes first. At exactly `p = 1/2` the outcome is `1 - y`: with the label on the first response (y = 1), equal
rewards are a miss, as in the accuracy. In the symmetric form each pair is there twice: `(p, y)`, `(1 - p, 1 - y)`.

Pairs as they stand, `(p, 1)` with the better response first, are never binned: every bin would be right throughout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from marginkit.errors import BadInput
from marginkit.evaluation.bootstrap import Array, Codes, Statistic

Form = Literal["confidence", "symmetric"]


def sigmoid(logits: npt.ArrayLike) -> Array:
    """`1 / (1 + exp(-x))` without overflow.

    Example:
        >>> sigmoid([0.0, -1000.0, 1000.0]).tolist()
        [0.5, 0.0, 1.0]
    """
    return np.asarray(0.5 * (1 + np.tanh(0.5 * np.asarray(logits, dtype=np.float64))))


def confidence_form(prob: npt.ArrayLike, label: npt.ArrayLike) -> tuple[Array, Array]:
    """Confidence and outcome of each pair: `max(p, 1 - p)` and `y if p > 1/2 else 1 - y`.

    Args:
        prob: `[pair]`, the model's P(first is better).
        label: `[pair]`, the true one: 0, 1 or a vote share between.

    Returns:
        Two `[pair]` arrays in [0, 1].

    Raises:
        BadInput: no pairs, different lengths, or a number outside [0, 1].

    Example:
        >>> confidence, outcome = confidence_form([0.9, 0.2, 0.5], [1, 0.75, 1])
        >>> confidence.tolist(), outcome.tolist()
        ([0.9, 0.8, 0.5], [1.0, 0.25, 0.0])
    """
    p, y = _checked(prob, label)
    return np.maximum(p, 1 - p), np.where(p > 0.5, y, 1 - y)


def _checked(prob: npt.ArrayLike, label: npt.ArrayLike) -> tuple[Array, Array]:
    p, y = np.asarray(prob, dtype=np.float64), np.asarray(label, dtype=np.float64)
    if p.ndim != 1 or p.shape != y.shape or not len(p):
        raise BadInput(f"prob {p.shape} and label {y.shape}: calibration needs one of each per pair")
    for name, values in (("prob", p), ("label", y)):
        if not ((values >= 0) & (values <= 1)).all():
            raise BadInput(f"{name} has values outside [0, 1]: pass probabilities, not logits")
    return p, y


def bin_codes(forecast: Array, bins: int) -> Codes:
    """The bin of each value: `bins` equal ones `(low, high]` on [0, 1], 0 in the first."""
    if bins < 1:
        raise BadInput(f"bins is {bins}: at least one is needed")
    edges = np.arange(1, bins + 1) / bins
    return np.searchsorted(edges, forecast, side="left")


def equal_count_codes(forecast: Array, bins: int) -> Codes:
    """The group of each value: `bins` groups by size, near-equal in number (the first have one more); ties as met.

    Example:
        >>> equal_count_codes(np.array([0.9, 0.6, 0.8, 0.7, 0.5]), 2).tolist()
        [1, 0, 1, 0, 0]
    """
    if bins < 1:
        raise BadInput(f"bins is {bins}: at least one is needed")
    larger, extra = divmod(len(forecast), bins)
    sizes = [larger + (place < extra) for place in range(bins)]
    codes = np.empty(len(forecast), np.int64)
    codes[np.argsort(forecast, kind="stable")] = np.repeat(np.arange(bins), sizes)
    return codes


@dataclass(frozen=True, slots=True)
class Binned:
    """Forecasts and outcomes by bin; in the symmetric form the mirrors of all pairs follow the pairs.

    Args:
        forecast: `[row]`.
        outcome: `[row]`.
        code: `[row]`, the bin of each.
        bins: how many.
        copies: rows a pair: 1, or 2 in the symmetric form.
    """

    forecast: Array
    outcome: Array
    code: Codes
    bins: int
    copies: int

    @classmethod
    def of(
        cls,
        prob: npt.ArrayLike,
        label: npt.ArrayLike,
        bins: int = 10,
        *,
        form: Form = "confidence",
        adaptive: bool = False,
    ) -> Binned:
        """Put pairs into bins.

        Args:
            prob: `[pair]`, the model's P(first is better).
            label: `[pair]`, the true one: 0, 1 or a vote share between.
            bins: how many.
            form: `confidence`, or `symmetric`: each pair from both sides.
            adaptive: groups of equal count instead of equal width.
        """
        if form == "confidence":
            forecast, outcome = confidence_form(prob, label)
        elif form == "symmetric":
            p, y = _checked(prob, label)
            forecast, outcome = np.concatenate([p, 1 - p]), np.concatenate([y, 1 - y])
        else:
            raise BadInput(f"form {form!r}: must be confidence or symmetric")
        codes = equal_count_codes(forecast, bins) if adaptive else bin_codes(forecast, bins)
        return cls(forecast, outcome, codes, bins, 1 if form == "confidence" else 2)

    @property
    def pairs(self) -> int:
        """How many pairs."""
        return len(self.code) // self.copies

    def sums(self, values: Array | None, unit: Codes, count: int) -> Array:
        """`[count, bins]`: what the `[row]` values of each unit's pairs add up to in each bin; rows if None."""
        place = np.tile(unit, self.copies) * self.bins + self.code
        found = np.bincount(place, weights=values, minlength=count * self.bins)
        return np.asarray(found.reshape(count, self.bins), dtype=np.float64)

    def means(self, values: Array | None = None) -> Array:
        """`[bins]`: the mean of `[row]` values in each bin; the number of rows if None; NaN in an empty bin."""
        everything = np.zeros(self.pairs, np.int64)
        rows: Array = self.sums(None, everything, 1)[0]
        if values is None:
            return rows
        with np.errstate(invalid="ignore"):
            return np.asarray(self.sums(values, everything, 1)[0] / rows)


def ece_statistic(
    prob: npt.ArrayLike,
    label: npt.ArrayLike,
    bins: int = 10,
    *,
    form: Form = "confidence",
    adaptive: bool = False,
) -> Statistic:
    """`expected_calibration_error` as a function of sums, for the bootstrap: bins stay as they are in the sample."""
    return ece_of(Binned.of(prob, label, bins, form=form, adaptive=adaptive))


def ece_of(binned: Binned) -> Statistic:
    """The same of pairs that are in bins already."""
    residual = binned.outcome - binned.forecast

    def sums(unit: Codes, count: int) -> Array:
        rows = np.bincount(unit, minlength=count)[:, None] * float(binned.copies)
        return np.concatenate([binned.sums(residual, unit, count), rows], axis=1)

    return Statistic(binned.pairs, sums, lambda total: np.abs(total[..., :-1]).sum(-1) / total[..., -1])


def expected_calibration_error(
    prob: npt.ArrayLike,
    label: npt.ArrayLike,
    bins: int = 10,
    weights: npt.ArrayLike | None = None,
    *,
    form: Form = "confidence",
) -> float:
    """Expected calibration error, the plug-in estimate.

    `sum_b n_b / N * |mean outcome_b - mean forecast_b|` over equal bins `(low, high]` on [0, 1].

    Args:
        prob: `[pair]`, the model's P(first is better).
        label: `[pair]`, the true one: 0, 1, or a vote share between (then the outcome is the expected hit).
        bins: how many on [0, 1]; confidences fill the upper half.
        weights: `[pair]`, at least 0; equal if None.
        form: `confidence`, or `symmetric`: `(p, y)` and `(1 - p, 1 - y)` of every pair.

    Returns:
        A number in [0, 1]. It is biased upward: compare it with `noise_floor`, or use `debiased_ece`.

    Raises:
        BadInput: no pairs, different lengths, or a number outside [0, 1].

    Example:
        >>> expected_calibration_error([1.0, 1.0, 1.0, 1.0], [1, 1, 1, 0])  # sure, and right three times in four
        0.25

    Source: Naeini, Cooper and Hauskrecht, AAAI 2015; confidence form as Guo et al., ICML 2017. Deviation: soft labels.
    """
    statistic = ece_statistic(prob, label, bins, form=form)
    return float(statistic(np.ones((1, np.size(prob))) if weights is None else np.atleast_2d(weights))[0])


def adaptive_calibration_error(prob: npt.ArrayLike, label: npt.ArrayLike, bins: int = 10) -> float:
    """Expected calibration error over groups of equal count: pairs sorted by confidence, cut into `bins` groups.

    Where most confidences crowd into a few equal bins, this looks as closely at all of them. Arguments and errors as
    `expected_calibration_error`; pairs of equal confidence are cut in the order in which they come.

    Example:
        >>> adaptive_calibration_error([1.0, 1.0, 0.5, 0.5], [1, 0, 1, 1], bins=2)
        0.5

    Source: Nixon et al., CVPR workshops 2019.
    """
    return float(ece_statistic(prob, label, bins, adaptive=True)(np.ones((1, np.size(prob))))[0])


def maximum_calibration_error(
    prob: npt.ArrayLike, label: npt.ArrayLike, bins: int = 10, *, form: Form = "confidence"
) -> float:
    """Largest gap of any bin: `max_b |mean outcome_b - mean forecast_b|`; arguments as `expected_calibration_error`.

    A bin with a handful of pairs easily shows a large gap: compare it with `noise_floor(...).largest`.

    Example:
        >>> round(maximum_calibration_error([0.9, 0.9, 0.6], [1, 1, 1]), 3)
        0.4

    Source: Naeini, Cooper and Hauskrecht, AAAI 2015.
    """
    binned = Binned.of(prob, label, bins, form=form)
    return float(np.nanmax(np.abs(binned.means(binned.outcome - binned.forecast))))


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """One bin of the reliability diagram.

    Args:
        low: lower edge, exclusive.
        high: upper edge, inclusive.
        count: pairs in it.
        confidence: their mean confidence.
        outcome: their mean outcome.
        outcome_low: lower end of the outcome's 95% Wilson interval.
        outcome_high: upper end.
    """

    low: float
    high: float
    count: int
    confidence: float
    outcome: float
    outcome_low: float
    outcome_high: float


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share observed on `count` trials.

    Example:
        >>> low, high = wilson_interval(0.7, 10)
        >>> round(low, 3), round(high, 3)
        (0.397, 0.892)

    Source: Wilson 1927.
    """
    z = 1.959964
    centre = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def reliability(
    prob: npt.ArrayLike, label: npt.ArrayLike, bins: int = 10, clusters: npt.ArrayLike | None = None
) -> list[ReliabilityBin]:
    """The reliability diagram: mean outcome against mean confidence, bin by bin; empty bins are left out.

    Args:
        prob: `[pair]`, the model's P(first is better).
        label: `[pair]`, the true one.
        bins: how many on [0, 1].
        clusters: `[pair]`; if given, a bin's interval counts its clusters as trials, not its pairs (cautious).

    Returns:
        One row per bin that has pairs. With vote shares the intervals are wider than need be.

    Raises:
        BadInput: as `expected_calibration_error`.

    Example:
        >>> [row] = reliability([0.8, 0.8, 0.8, 0.8, 0.2], [1, 1, 1, 0, 0], bins=10)
        >>> row.low, row.high, row.count, round(row.confidence, 2), round(row.outcome, 2)
        (0.7, 0.8, 5, 0.8, 0.8)

    Source: Murphy and Winkler 1977; intervals Wilson 1927.
    """
    binned = Binned.of(prob, label, bins)
    names = np.arange(binned.pairs) if clusters is None else np.asarray(clusters)
    rows = []
    for code in np.unique(binned.code):
        inside = binned.code == code
        mean = float(binned.outcome[inside].mean())
        low, high = wilson_interval(mean, len(np.unique(names[inside])))
        edges = float(code / bins), float((code + 1) / bins)
        confidence = float(binned.forecast[inside].mean())
        rows.append(ReliabilityBin(*edges, int(inside.sum()), confidence, mean, low, high))
    return rows
