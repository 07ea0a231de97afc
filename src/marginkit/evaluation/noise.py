"""How much calibration error a finite sample shows by itself: the noise floor, and the error without the noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from marginkit.errors import BadInput
from marginkit.evaluation.bootstrap import Array, Codes, Statistic, drawn_units
from marginkit.evaluation.calibration import Binned, Form

_erf = np.vectorize(math.erf, otypes=[np.float64])
NORMAL_FROM = 100.0
"""Variance of a bin's sum of outcomes from which it is drawn as a normal number, not pair by pair."""


@dataclass(frozen=True, slots=True)
class NoiseFloor:
    """The plug-in ECE that a perfectly calibrated model with these probabilities would show.

    Args:
        mean: its mean over the draws.
        low: their 5% quantile.
        high: their 95% quantile: a plug-in ECE up to here is no sign of miscalibration.
        largest: the same quantile of the largest gap of any bin (MCE).
    """

    mean: float
    low: float
    high: float
    largest: float


def noise_floor(
    prob: npt.ArrayLike,
    bins: int = 10,
    votes: npt.ArrayLike | None = None,
    *,
    form: Form = "confidence",
    adaptive: bool = False,
    draws: int = 200,
    seed: int = 0,
) -> NoiseFloor:
    """The plug-in ECE of outcomes drawn from the model's own probabilities, same pairs and bins.

    `ECE(prob, y*)` with `y* = Binomial(votes, prob) / votes`, one vote unless told. Bins whose sum of outcomes has a
    variance of 100 or more (some 500 pairs) draw that sum as a normal number.

    Args:
        prob: `[pair]`, the model's P(first is better).
        bins: how many on [0, 1].
        votes: `[pair]`, raters behind each label. Without it every pair is one hard outcome; where the labels are vote
            shares or known probabilities the floor is then an upper bound, as a share is less noisy than one vote.
        form: as in `expected_calibration_error`.
        adaptive: as in `adaptive_calibration_error`.
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
    binned = Binned.of(prob, prob, bins, form=form, adaptive=adaptive)
    forecast = binned.forecast[: binned.pairs]
    trials = np.ones(len(forecast), np.int64) if votes is None else np.asarray(votes, np.int64)
    if trials.shape != forecast.shape or (trials < 1).any():
        raise BadInput("votes: one count of at least 1 per pair")
    # A cell is where a pair falls: its bin, and that of its mirror. What is drawn of a cell is its sum of residuals.
    codes = binned.code.reshape(binned.copies, -1)
    cells, cell = np.unique(codes[0] * bins + codes[-1], return_inverse=True)
    into = np.zeros((len(cells), bins))
    into[np.arange(len(cells)), cells // bins] += 1
    if binned.copies == 2:
        into[np.arange(len(cells)), cells % bins] -= 1
    variance = np.bincount(cell, weights=forecast * (1 - forecast) / trials, minlength=len(cells))
    generator = np.random.default_rng(seed)
    sums = np.sqrt(variance) * generator.standard_normal((draws, len(cells)))
    few = variance < NORMAL_FROM
    single = few[cell]
    chance, votes_of, place = forecast[single], trials[single], cell[single]
    for draw in range(draws if single.any() else 0):  # one at a time: memory stays at one set of outcomes
        if votes is None:
            residual = (generator.random(len(chance)) < chance) - chance
        else:
            residual = generator.binomial(votes_of, chance) / votes_of - chance
        sums[draw, few] = np.bincount(place, weights=residual, minlength=len(cells))[few]
    gaps = np.abs(sums @ into)
    rows = binned.means()
    found = gaps.sum(1) / rows.sum()
    low, high = np.quantile(found, [0.05, 0.95])
    largest = np.quantile((gaps / np.maximum(rows, 1)).max(1), 0.95)
    return NoiseFloor(float(found.mean()), float(low), float(high), float(largest))


def debiased_statistic(
    prob: npt.ArrayLike,
    label: npt.ArrayLike,
    bins: int = 10,
    clusters: npt.ArrayLike | None = None,
    *,
    form: Form = "confidence",
    adaptive: bool = False,
) -> Statistic:
    """`debiased_ece` as a function of sums; the bins' standard errors stay those of all pairs."""
    return debiased_of(Binned.of(prob, label, bins, form=form, adaptive=adaptive), clusters)


def debiased_of(binned: Binned, clusters: npt.ArrayLike | None = None) -> Statistic:
    """The same of pairs that are in bins already."""
    residual = binned.outcome - binned.forecast
    centred = residual - binned.means(residual)[binned.code]
    codes, units = drawn_units(np.arange(binned.pairs) if clusters is None else clusters)
    count = (binned.sums(None, codes, units) > 0).sum(0)
    usable = count > 1
    scatter = (binned.sums(centred, codes, units) ** 2).sum(0)[usable]
    error = np.sqrt(scatter * count[usable] / (count[usable] - 1))
    error = np.maximum(error, 1e-12)  # residuals all alike: no noise to take out

    def sums(unit: Codes, units: int) -> Array:
        rows = np.bincount(unit, minlength=units)[:, None] * float(binned.copies)
        return np.concatenate([binned.sums(residual, unit, units)[:, usable], rows], axis=1)

    def value(total: Array) -> Array:
        gap = total[..., :-1]
        z = np.clip(gap / error, -30, 30)
        halves = gap * _erf(z / math.sqrt(2)) - error * math.sqrt(2 / math.pi) * np.exp(-0.5 * z * z)
        return np.asarray(np.maximum(halves.sum(-1), 0) / total[..., -1])

    return Statistic(binned.pairs, sums, value)


def debiased_ece(
    prob: npt.ArrayLike,
    label: npt.ArrayLike,
    bins: int = 10,
    clusters: npt.ArrayLike | None = None,
    *,
    form: Form = "confidence",
) -> float:
    """Expected calibration error without the sample's noise: the gap's sign from one half, its size from the other.

    `max(0, sum_b h(S_b, s_b)) / N`, `h(S, s) = S (2 Phi(S / s) - 1) - 2 s phi(S / s)`, where `S_b` is the sum of
    outcome - forecast in a bin and `s_b` its standard error. `h` is the mean of `2 sign(S') S''` over all splits of
    the bin into halves `S' + S'' = S`, worked out for normal sums.

    The plug-in takes |gap| with the sign that the noise itself chose. Here sign and size come from different pairs, so
    before the cut at 0 the expectation is 0 for a calibrated model, never above the binned truth, and equal to it once
    the gaps stand clear of the noise (|S| > 3 s); it errs downward between.

    Args:
        prob: `[pair]`, the model's P(first is better).
        label: `[pair]`, the true one; vote shares need no vote counts, as `s_b` comes from the scatter seen.
        bins: how many on [0, 1]; a bin with a single pair (or cluster) contributes nothing.
        clusters: `[pair]`; standard errors are over clusters if given (at least 20).
        form: as in `expected_calibration_error`.

    Returns:
        A number in [0, 1].

    Raises:
        BadInput: as `expected_calibration_error`.

    Example:
        >>> from marginkit.evaluation.calibration import expected_calibration_error
        >>> rng = np.random.default_rng(0)
        >>> prob = rng.uniform(0.02, 0.98, 500)
        >>> label = rng.uniform(size=500) < prob
        >>> debiased_ece(prob, label) < 0.5 * expected_calibration_error(prob, label)
        True

    Source: ours, in place of Kumar, Liang and Ma, NeurIPS 2019, whose correction of the absolute form (subtract the
    bias that fresh normal noise would add) leaves 59% of the plug-in's bias when the model is calibrated.
    """
    statistic = debiased_statistic(prob, label, bins, clusters, form=form)
    return float(statistic(np.ones((1, np.size(prob))))[0])
