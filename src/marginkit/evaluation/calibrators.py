"""Probabilities put right after training: fitted on one split, judged on another.

All calibrators of pairs are symmetric: swapping the two responses turns p into 1 - p. So none has an intercept. Platt's
`sigmoid(a gap + b)` would read b off the order of the responses, and in a pairs table the order *is* the label (the
better response comes first): b would grow without bound and say nothing of a pair whose label is not known. Fitted on
each pair from both sides the optimum has b = 0 exactly, and that is what is done here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from marginkit.errors import BadInput
from marginkit.evaluation.bootstrap import Array, Statistic, of_sums, ratio
from marginkit.evaluation.calibration import sigmoid
from marginkit.evaluation.noise import noise_floor
from marginkit.evaluation.pair_columns import PairColumns, nll, read_tables
from marginkit.evaluation.questions import Questions
from marginkit.records import Estimate
from marginkit.tables import Scores

TEMPERATURE_BOUNDS = (0.05, 50.0)
How = Literal["temperature", "platt", "isotonic"]
HOW: tuple[str, ...] = get_args(How)


@dataclass(frozen=True, slots=True)
class Calibrator:
    """A fitted map from gaps to probabilities; odd in the gap, so a swapped pair gets 1 - p.

    Args:
        how: temperature, platt or isotonic.
        fitted_on: pairs it was fitted on.
        at_bound: the optimum lies outside what is allowed: a temperature or slope at its bound; for isotonic, a step
            would have been 0 or 1 and was kept away from it by `1 / (fitted_on + 2)`.
        slope: factor of the gap (1 / T); None for isotonic.
        steps: for isotonic: gaps and their probabilities, between which it is linear.
    """

    how: str
    fitted_on: int
    at_bound: bool
    slope: float | None = None
    steps: tuple[Array, Array] | None = None

    def prob(self, gap: npt.ArrayLike) -> Array:
        """P(first is better) of `[pair]` gaps, logits."""
        if self.slope is not None:
            return sigmoid(self.slope * np.asarray(gap, np.float64))
        assert self.steps is not None
        return np.asarray(np.interp(np.asarray(gap, np.float64), *self.steps))

    def logits(self, gap: npt.ArrayLike) -> Array:
        """The same in logits: the calibrated gap."""
        if self.slope is not None:
            return self.slope * np.asarray(gap, np.float64)
        p = self.prob(gap)
        return np.asarray(np.log(p) - np.log1p(-p))


def fit_calibrator(gap: npt.ArrayLike, label: npt.ArrayLike, how: str = "temperature") -> Calibrator:
    """Fit a calibrator of pairs.

    - `temperature`: `sigmoid(gap / T)`, T within [0.05, 50], by least NLL (`fit_temperature`).
    - `platt`: `sigmoid(a gap)`, a of either sign within [-20, 20]: a model that ranks backwards gets a < 0. Labels are
      Platt's `(n y + 1) / (n + 2)` for n pairs, so that a stays finite where every pair is right.
    - `isotonic`: the non-decreasing step function nearest to the labels, of each pair from both sides, linear between
      steps, kept within `[1 / (n + 2), 1 - 1 / (n + 2)]`: NLL has no room for a sure answer.

    Args:
        gap: `[pair]`, logits.
        label: `[pair]`, P(first is better): 0, 1, or a vote share between.
        how: which.

    Returns:
        The calibrator, which says whether it is at a bound.

    Raises:
        BadInput: no such calibrator, no pairs, different lengths, gaps that are not finite, a label outside [0, 1].

    Example:
        >>> found = fit_calibrator([2.0, 2.0, 2.0, -2.0], [1, 1, 1, 1])  # says .88, is right .75 of the time
        >>> found.prob([2.0, -2.0]).round(3).tolist(), found.at_bound
        ([0.75, 0.25], False)

    Source: Guo et al., ICML 2017; Platt 1999; Zadrozny and Elkan, KDD 2002. Deviation: symmetric, so without intercept.
    """
    g, y = _checked(gap, label)
    n = len(g)
    if how == "temperature":
        temperature, at_bound = fit_temperature(g, y)
        return Calibrator(how, n, at_bound, slope=1 / temperature)
    if how == "platt":
        steepest = 1 / TEMPERATURE_BOUNDS[0]
        slope, at_bound = _fit_slope(g, (n * y + 1) / (n + 2), -steepest, steepest)
        return Calibrator(how, n, at_bound, slope=slope)
    if how == "isotonic":
        return _isotonic(g, y)
    raise BadInput(f"calibrator {how!r}: must be one of {', '.join(HOW)}")


def fit_temperature(gap: npt.ArrayLike, label: npt.ArrayLike) -> tuple[float, bool]:
    """The temperature that calibrates the gaps best: `T* = argmin mean NLL(sigmoid(gap / T), label)`.

    Solves `mean[gap (label - sigmoid(gap / T))] = 0` for 1 / T by Newton's method inside a bracket.

    Args:
        gap: `[pair]`, logits.
        label: `[pair]`, P(first is better): 0, 1, or a vote share between.

    Returns:
        `(T, at_bound)`: T within [0.05, 50]; `at_bound` says that the optimum lies outside (all pairs right: T -> 0; no
        better than chance: T -> infinity). 1 where all gaps are 0: no T changes them.

    Raises:
        BadInput: no pairs, different lengths, or gaps that are not finite.

    Example:
        >>> T, at_bound = fit_temperature([2.0, 2.0, 2.0, 2.0], [1, 1, 1, 0])  # says .88, is right .75 of the time
        >>> round(T, 4), at_bound  # 2 / log(3)
        (1.8205, False)

    Source: Guo et al., ICML 2017.
    """
    coldest, hottest = TEMPERATURE_BOUNDS
    slope, at_bound = _fit_slope(*_checked(gap, label), 1 / hottest, 1 / coldest)
    if at_bound:
        return (coldest if slope > 1 else hottest), True
    return 1 / slope, False


def temperature_statistic(gap: Array, label: Array, temperature: float) -> Statistic:
    """T on resamples, by one Newton step in 1 / T from the full sample's."""
    prob = sigmoid(gap / temperature)
    coldest, hottest = TEMPERATURE_BOUNDS

    def value(total: Array) -> Array:
        inverse = 1 / temperature + ratio(total[..., 0], total[..., 1])
        return np.asarray(1 / np.clip(inverse, 1 / hottest, 1 / coldest))

    return of_sums(value, gap * (label - prob), gap * gap * prob * (1 - prob))


def _checked(gap: npt.ArrayLike, label: npt.ArrayLike) -> tuple[Array, Array]:
    g, y = np.asarray(gap, dtype=np.float64), np.asarray(label, dtype=np.float64)
    if g.ndim != 1 or g.shape != y.shape or not len(g) or not np.isfinite(g).all():
        raise BadInput(f"gap {g.shape} and label {y.shape}: a calibrator needs one finite gap and one label per pair")
    if not ((y >= 0) & (y <= 1)).all():
        raise BadInput("label has values outside [0, 1]: pass P(first is better), or leave pairs without one out")
    return g, y


def _fit_slope(gap: Array, label: Array, low: float, high: float) -> tuple[float, bool]:
    """The a in [low, high] with the least mean NLL(sigmoid(a gap), label), and whether it lies outside."""

    def slope_and_curvature(a: float) -> tuple[float, float]:
        p = sigmoid(a * gap)
        return float(np.mean(gap * (label - p))), float(np.mean(gap * gap * p * (1 - p)))

    if not gap.any():  # equal rewards throughout: every a says the same
        return min(max(1.0, low), high), False
    if slope_and_curvature(high)[0] >= 0:
        return high, True
    if slope_and_curvature(low)[0] < 0:
        return low, True
    a = min(max(1.0, low), high)
    for _ in range(200):
        rising, curvature = slope_and_curvature(a)
        low, high = (a, high) if rising >= 0 else (low, a)
        step = a + rising / curvature if curvature > 0 else math.nan
        step = step if low <= step <= high else (low + high) / 2
        if abs(step - a) <= 1e-13 * abs(step) or high - low <= 1e-15:
            return step, False
        a = step
    return a, False


def _isotonic(gap: Array, label: Array) -> Calibrator:
    from scipy.optimize import isotonic_regression

    n = len(gap)
    at, place = np.unique(np.concatenate([gap, -gap]), return_inverse=True)
    rows = np.bincount(place).astype(np.float64)
    share = np.bincount(place, weights=np.concatenate([label, 1 - label])) / rows
    fitted = np.asarray(isotonic_regression(share, weights=rows).x)
    floor = 1 / (n + 2)
    kept = np.clip(fitted, floor, 1 - floor)
    return Calibrator("isotonic", n, bool((kept != fitted).any()), steps=(at, kept))


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A calibrator judged on pairs it has not seen.

    Args:
        calibrator: what was fitted.
        before: `nll`, `brier`, `ece` and `ece_floor` of the pairs judged, as the model says them.
        after: the same of the calibrated probabilities.
        difference: after - before in `nll` and `brier`, on the same pairs; negative is better.
    """

    calibrator: Calibrator
    before: Mapping[str, Estimate]
    after: Mapping[str, Estimate]
    difference: Mapping[str, Estimate]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; NaN becomes None."""
        fitted = self.calibrator
        told = {"how": fitted.how, "fitted_on": fitted.fitted_on, "at_bound": fitted.at_bound, "slope": fitted.slope}
        parts = {"before": self.before, "after": self.after, "difference": self.difference}
        return told | {part: {name: one.to_json() for name, one in found.items()} for part, found in parts.items()}


def calibrate(
    fit_on: Scores | pa.Table | str | Path,
    judge_on: Scores | pa.Table | str | Path,
    how: str = "temperature",
    *,
    bins: int = 10,
    resamples: int = 1000,
    seed: int = 0,
) -> Calibrated:
    """Fit a calibrator on the pairs of one split and judge it on those of another.

    Args:
        fit_on: scores of the split that is fitted on, say dev.
        judge_on: scores of the split that is judged, say test; the two share no cluster.
        how: temperature, platt or isotonic (`fit_calibrator`).
        bins: of the calibration error.
        resamples: of the bootstrap.
        seed: of the bootstrap and the noise floor.

    Returns:
        NLL, Brier score and ECE with its floor, before and after, and the paired difference of the proper scores. Ties
        without an observed probability are left out of both.

    Raises:
        BadInput: no labelled pairs in either, or clusters that are in both.

    Example:
        >>> def table(names, gap):
        ...     none = pa.nulls(4, pa.float64())
        ...     return pa.table({
        ...         "group": names, "cluster": names, "gap": gap, "reward_chosen": gap, "reward_rejected": [0.0] * 4,
        ...         "tie": [False] * 4, "label_prob": none, "target_gap": none,
        ...     })
        >>> found = calibrate(table(list("abcd"), [2.0, 2.0, 2.0, -2.0]), table(list("efgh"), [2.0, 2.0, -2.0, 2.0]))
        >>> round(found.before["nll"].value, 3), round(found.after["nll"].value, 3)
        (0.627, 0.562)
    """
    tables = [read_tables(scores)[1] for scores in (fit_on, judge_on)]
    pairs = [PairColumns.read(table) for table in tables]
    pairs = [own.take(~np.isnan(own.label)) for own in pairs]
    for own, role in zip(pairs, ("fit on", "judge"), strict=True):
        if not len(own.gap):
            raise BadInput(f"there are no labelled pairs to {role}: score a split that has pairs")
    shared = _clusters(tables[0]) & _clusters(tables[1])
    if shared:
        some = ", ".join(sorted(shared)[:3])
        raise BadInput(
            f"{len(shared)} clusters are fitted on and judged (first {some}): use splits that share no prompt"
        )
    fitted, judged = pairs
    calibrator = fit_calibrator(fitted.gap, fitted.label, how)
    label, everything = judged.label, np.ones(len(judged.gap), bool)
    asked = Questions(judged.cluster, resamples=resamples, seed=seed)
    scores, floors = {}, {}
    for part, gap, prob in (
        ("before", judged.gap, sigmoid(judged.gap)),
        ("after", calibrator.logits(judged.gap), calibrator.prob(judged.gap)),
    ):
        scores[part] = {"nll": nll(gap, label), "brier": (label - prob) ** 2}
        for name, values in scores[part].items():
            asked.mean(f"{part} {name}", values)
        asked.ece(f"{part} ece", prob, label, everything, bins=bins)
        floor = noise_floor(prob, bins, seed=seed)
        floors[part] = Estimate(floor.mean, floor.low, floor.high, len(gap), 0)
    for name in ("nll", "brier"):
        asked.mean(f"difference {name}", scores["after"][name] - scores["before"][name])
    answers = asked.answers()

    def of(part: str, *names: str) -> dict[str, Estimate]:
        return {name: answers[f"{part} {name}"] for name in names}

    return Calibrated(
        calibrator,
        before=of("before", "nll", "brier", "ece") | {"ece_floor": floors["before"]},
        after=of("after", "nll", "brier", "ece") | {"ece_floor": floors["after"]},
        difference=of("difference", "nll", "brier"),
    )


def _clusters(table: pa.Table) -> set[str]:
    """The names of a table's clusters; a row without one is its group's."""
    return {
        str(own if own is not None else group)
        for own, group in zip(table["cluster"].to_pylist(), table["group"].to_pylist(), strict=True)
    }
