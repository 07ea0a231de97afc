"""Is the confidence right? Calibration of pairwise probabilities, with the noise that a finite sample puts there.

All of it is in the confidence form: a pair's confidence is `max(p, 1 - p)`, its outcome the probability that the side
the model prefers is the better one, `y` if `p > 1/2`, else `1 - y`. So a pair counts the same whichever response comes
first. At exactly `p = 1/2` the outcome is `1 - y`: with the label on the first response (y = 1), equal rewards are a
miss, as in the accuracy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from marginkit.errors import BadInput
from marginkit.evaluation.bootstrap import Array, Codes, Statistic, units

_erf = np.vectorize(math.erf, otypes=[np.float64])
TEMPERATURE_BOUNDS = (0.05, 50.0)


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
    p, y = np.asarray(prob, dtype=np.float64), np.asarray(label, dtype=np.float64)
    if p.ndim != 1 or p.shape != y.shape or not len(p):
        raise BadInput(f"prob {p.shape} and label {y.shape}: calibration needs one of each per pair")
    for name, values in (("prob", p), ("label", y)):
        if not ((values >= 0) & (values <= 1)).all():
            raise BadInput(f"{name} has values outside [0, 1]: pass probabilities, not logits")
    return np.maximum(p, 1 - p), np.where(p > 0.5, y, 1 - y)


def bin_codes(confidence: Array, bins: int) -> Codes:
    """The bin of each value: `bins` equal ones `(low, high]` on [0, 1], 0 in the first."""
    if bins < 1:
        raise BadInput(f"bins is {bins}: at least one is needed")
    edges = np.arange(1, bins + 1) / bins
    return np.searchsorted(edges, confidence, side="left")


def _residuals(prob: npt.ArrayLike, label: npt.ArrayLike, bins: int) -> Array:
    """`[pair, bin]`: outcome - confidence in the pair's bin, 0 elsewhere; its column sums are the bins' gaps."""
    confidence, outcome = confidence_form(prob, label)
    spread = np.zeros((len(confidence), bins))
    spread[np.arange(len(confidence)), bin_codes(confidence, bins)] = outcome - confidence
    return spread


def ece_statistic(prob: npt.ArrayLike, label: npt.ArrayLike, bins: int = 10) -> Statistic:
    """`expected_calibration_error` as a function of pair weights, for the bootstrap.

    A bin's gap is linear in the weights, so a resample is one row of a matrix product.
    """
    residuals = _residuals(prob, label, bins)
    return lambda weights: np.abs(weights @ residuals).sum(1) / weights.sum(1)


def expected_calibration_error(
    prob: npt.ArrayLike, label: npt.ArrayLike, bins: int = 10, weights: npt.ArrayLike | None = None
) -> float:
    """Expected calibration error, the plug-in estimate.

    `sum_b n_b / N * |mean outcome_b - mean confidence_b|` over equal bins `(low, high]` of the confidence on [0, 1].

    Args:
        prob: `[pair]`, the model's P(first is better).
        label: `[pair]`, the true one: 0, 1, or a vote share between (then the outcome is the expected hit).
        bins: how many on [0, 1]; confidences fill the upper half.
        weights: `[pair]`, at least 0; equal if None.

    Returns:
        A number in [0, 1]. It is biased upward: compare it with `noise_floor`, or use `debiased_ece`.

    Raises:
        BadInput: no pairs, different lengths, or a number outside [0, 1].

    Example:
        >>> expected_calibration_error([1.0, 1.0, 1.0, 1.0], [1, 1, 1, 0])  # sure, and right three times in four
        0.25

    Source: Naeini, Cooper and Hauskrecht, AAAI 2015; confidence form as Guo et al., ICML 2017. Deviation: soft labels.
    """
    statistic = ece_statistic(prob, label, bins)
    return float(statistic(np.ones((1, np.size(prob))) if weights is None else np.atleast_2d(weights))[0])


def maximum_calibration_error(prob: npt.ArrayLike, label: npt.ArrayLike, bins: int = 10) -> float:
    """Largest gap of any bin: `max_b |mean outcome_b - mean confidence_b|`; arguments as `expected_calibration_error`.

    Example:
        >>> round(maximum_calibration_error([0.9, 0.9, 0.6], [1, 1, 1]), 3)
        0.4

    Source: Naeini, Cooper and Hauskrecht, AAAI 2015.
    """
    return max(abs(row.outcome - row.confidence) for row in reliability(prob, label, bins))


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


def _wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share observed on `count` trials."""
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
    confidence, outcome = confidence_form(prob, label)
    codes = bin_codes(confidence, bins)
    names = np.arange(len(codes)) if clusters is None else np.asarray(clusters)
    rows = []
    for code in np.unique(codes):
        inside = codes == code
        mean = float(outcome[inside].mean())
        low, high = _wilson_interval(mean, len(np.unique(names[inside])))
        edges = float(code / bins), float((code + 1) / bins)
        rows.append(ReliabilityBin(*edges, int(inside.sum()), float(confidence[inside].mean()), mean, low, high))
    return rows


@dataclass(frozen=True, slots=True)
class NoiseFloor:
    """The plug-in ECE that a perfectly calibrated model with these probabilities would show.

    Args:
        mean: its mean over the draws.
        low: their 5% quantile.
        high: their 95% quantile: a plug-in ECE up to here is no sign of miscalibration.
    """

    mean: float
    low: float
    high: float


def noise_floor(
    prob: npt.ArrayLike,
    bins: int = 10,
    votes: npt.ArrayLike | None = None,
    *,
    draws: int = 200,
    seed: int = 0,
) -> NoiseFloor:
    """The plug-in ECE of outcomes drawn from the model's own probabilities, same pairs and bins.

    `ECE(prob, y*)` with `y* = Binomial(votes, prob) / votes`, one vote unless told.

    Args:
        prob: `[pair]`, the model's P(first is better).
        bins: how many on [0, 1].
        votes: `[pair]`, raters behind each label. Without it every pair is one hard outcome; where the labels are vote
            shares or known probabilities the floor is then an upper bound, as a share is less noisy than one vote.
        draws: how many sets of outcomes.
        seed: of the draw.

    Returns:
        Mean and quantiles. Outcomes are drawn pair by pair: pairs that share raters or prompts can be noisier.

    Raises:
        BadInput: no pairs, a number outside [0, 1], or votes below 1.

    Example:
        >>> prob = np.random.default_rng(0).uniform(0.02, 0.98, 500)
        >>> floor = noise_floor(prob)
        >>> 0.02 < floor.mean < 0.05 and floor.high > floor.mean
        True

    Source: consistency resampling, Bröcker and Smith 2007; as a test of calibration Vaicenavicius et al., AISTATS 2019.
    """
    confidence, _ = confidence_form(prob, prob)
    trials = np.ones(len(confidence), np.int64) if votes is None else np.asarray(votes, np.int64)
    if trials.shape != confidence.shape or (trials < 1).any():
        raise BadInput("votes: one count of at least 1 per pair")
    onehot = np.eye(bins)[bin_codes(confidence, bins)]
    generator = np.random.default_rng(seed)
    found = np.empty(draws)
    for draw in range(draws):  # one at a time: memory stays at one set of outcomes
        outcome = generator.binomial(trials, confidence) / trials
        found[draw] = np.abs((outcome - confidence) @ onehot).sum() / len(confidence)
    low, high = np.quantile(found, [0.05, 0.95])
    return NoiseFloor(float(found.mean()), float(low), float(high))


def debiased_statistic(
    prob: npt.ArrayLike, label: npt.ArrayLike, bins: int = 10, clusters: npt.ArrayLike | None = None
) -> Statistic:
    """`debiased_ece` as a function of pair weights; the bins' standard errors stay those of all pairs."""
    residuals = _residuals(prob, label, bins)
    onehot = np.eye(bins)[bin_codes(confidence_form(prob, label)[0], bins)]
    codes, _ = units(np.arange(len(residuals)) if clusters is None else clusters)
    sums, pairs = np.zeros((2, codes.max() + 1, bins))
    np.add.at(sums, codes, residuals - onehot * (residuals.sum(0) / np.maximum(onehot.sum(0), 1)))
    np.add.at(pairs, codes, onehot)
    count = (pairs > 0).sum(0)
    usable = count > 1
    error = np.sqrt((sums**2).sum(0)[usable] * count[usable] / (count[usable] - 1))
    error = np.maximum(error, 1e-12)  # residuals all alike: no noise to take out

    def statistic(weights: Array) -> Array:
        gap = weights @ residuals[:, usable]
        z = np.clip(gap / error, -30, 30)
        halves = gap * _erf(z / math.sqrt(2)) - error * math.sqrt(2 / math.pi) * np.exp(-0.5 * z * z)
        return np.asarray(np.maximum(halves.sum(1), 0) / weights.sum(1))

    return statistic


def debiased_ece(
    prob: npt.ArrayLike, label: npt.ArrayLike, bins: int = 10, clusters: npt.ArrayLike | None = None
) -> float:
    """Expected calibration error without the sample's noise: the gap's sign from one half, its size from the other.

    `max(0, sum_b h(S_b, s_b)) / N`, `h(S, s) = S (2 Phi(S / s) - 1) - 2 s phi(S / s)`, where `S_b` is the sum of
    outcome - confidence in a bin and `s_b` its standard error. `h` is the mean of `2 sign(S') S''` over all splits of
    the bin into halves `S' + S'' = S`, worked out for normal sums.

    The plug-in takes |gap| with the sign that the noise itself chose. Here sign and size come from different pairs, so
    before the cut at 0 the expectation is 0 for a calibrated model, never above the binned truth, and equal to it once
    the gaps stand clear of the noise (|S| > 3 s); it errs downward between.

    Args:
        prob: `[pair]`, the model's P(first is better).
        label: `[pair]`, the true one; vote shares need no vote counts, as `s_b` comes from the scatter seen.
        bins: how many on [0, 1]; a bin with a single pair (or cluster) contributes nothing.
        clusters: `[pair]`; standard errors are over clusters if given (at least 20).

    Returns:
        A number in [0, 1].

    Raises:
        BadInput: as `expected_calibration_error`.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> prob = rng.uniform(0.02, 0.98, 500)
        >>> label = rng.uniform(size=500) < prob
        >>> debiased_ece(prob, label) < 0.5 * expected_calibration_error(prob, label)
        True

    Source: ours, in place of Kumar, Liang and Ma, NeurIPS 2019, whose correction of the absolute form (subtract the
    bias that fresh normal noise would add) leaves 59% of the plug-in's bias when the model is calibrated.
    """
    return float(debiased_statistic(prob, label, bins, clusters)(np.ones((1, np.size(prob))))[0])


def fit_temperature(gap: npt.ArrayLike, label: npt.ArrayLike) -> tuple[float, bool]:
    """The temperature that calibrates the gaps best: `T* = argmin mean NLL(sigmoid(gap / T), label)`.

    Solves `mean[gap (label - sigmoid(gap / T))] = 0` by bisection in log T.

    Args:
        gap: `[pair]`, logits.
        label: `[pair]`, P(first is better): 0, 1, or a vote share between.

    Returns:
        `(T, at_bound)`: T within [0.05, 50]; `at_bound` says that the optimum lies outside (all pairs right: T -> 0; no
        better than chance: T -> infinity).

    Raises:
        BadInput: no pairs, different lengths, or gaps that are not finite.

    Example:
        >>> T, at_bound = fit_temperature([2.0, 2.0, 2.0, 2.0], [1, 1, 1, 0])  # says .88, is right .75 of the time
        >>> round(T, 4), at_bound  # 2 / log(3)
        (1.8205, False)

    Source: Guo et al., ICML 2017.
    """
    g, y = np.asarray(gap, dtype=np.float64), np.asarray(label, dtype=np.float64)
    if g.ndim != 1 or g.shape != y.shape or not len(g) or not np.isfinite(g).all():
        raise BadInput(f"gap {g.shape} and label {y.shape}: a temperature needs one finite gap and one label per pair")

    def too_cold(temperature: float) -> bool:
        return float(np.mean(g * (y - sigmoid(g / temperature)))) < 0

    low, high = TEMPERATURE_BOUNDS
    if not too_cold(low):
        return low, True
    if too_cold(high):
        return high, True
    while high / low > 1 + 1e-12:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if too_cold(middle) else (low, middle)
    return math.sqrt(low * high), False
