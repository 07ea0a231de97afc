"""The fits behind gamma: the slope of a logistic curve through 1/2, with and without ties."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

Array = npt.NDArray[np.float64]


def fit_slope(gap: Array, share: Array, weight: Array) -> float:
    """The slope of a logistic curve through 1/2: argmin_g sum w * NLL(sigmoid(g * gap), share), by Newton's method.

    Args:
        gap: [N] dataset units.
        share: [N] in [0, 1].
        weight: [N] >= 0.

    Returns:
        Logits per unit; infinite (with its sign) where no answer goes against the grades, NaN without a gap.

    Example:
        >>> round(fit_slope(np.array([1.0, 1.0]), np.array([1.0, 0.5]), np.array([1.0, 1.0])), 4)  # log(.75 / .25)
        1.0986
    """
    used = (gap != 0) & (weight > 0)
    d, y, w = np.abs(gap[used]), np.where(gap > 0, share, 1 - share)[used], weight[used]
    if not len(d):
        return math.nan
    if not (w * (1 - y)).any() or not (w * y).any():
        return math.inf if (w * y).any() else -math.inf
    slope = 0.0
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(slope * d, -500, 500)))
        step = float((w * d * (y - p)).sum() / max((w * d * d * p * (1 - p)).sum(), 1e-300))
        slope += float(np.clip(step, -2 / d.max(), 2 / d.max()))
        if abs(step) < 1e-10 * max(1.0, abs(slope)):
            break
    return slope


def fit_with_ties(gap: Array, answer: Array, weight: Array) -> tuple[float, float]:
    """Slope and tie threshold: P(first) = sigmoid(g gap - t), P(second) = sigmoid(-g gap - t), the rest ties.

    A rater with five grades says "equal" of what he would order if asked: two impressions in the same bin. To leave
    ties out overstates the slope, to count them half understates it; under this model sigmoid(g gap) is the preference
    behind the ties.

    Args:
        gap: [N] dataset units.
        answer: [N] 1, -1 or 0 for a tie.
        weight: [N] >= 0.

    Returns:
        (g, t): logits per unit, logits.

    Source: Rao and Kupper, "Ties in paired-comparison experiments", JASA 1967.
    """
    first, second, tie = answer > 0, answer < 0, answer == 0
    if not (weight * tie).any():
        return fit_slope(gap, (answer + 1) / 2, weight), 0.0
    unit = math.sqrt(float((weight * gap**2).sum() / weight.sum())) or 1.0
    d, w = gap / unit, weight / weight.sum()

    def loss(x: Array) -> tuple[float, Array]:
        g, t = float(x[0]), math.exp(float(x[1]))
        p, q = (1 / (1 + np.exp(-np.clip(sign * g * d - t, -500, 500))) for sign in (1, -1))
        rest = np.clip(1 - p - q, 1e-12, None)
        value = -float((w * np.log(np.clip(np.where(first, p, np.where(second, q, rest)), 1e-300, None))).sum())
        up, down = p * (1 - p), q * (1 - q)
        by_g = np.where(first, (1 - p) * d, np.where(second, -(1 - q) * d, -(up - down) * d / rest))
        by_t = np.where(first, -(1 - p), np.where(second, -(1 - q), (up + down) / rest))
        return value, np.array([-(w * by_g).sum(), -(w * by_t).sum() * t])

    found = minimize(loss, np.array([0.5, -1.0]), jac=True, method="BFGS").x
    return float(found[0]) / unit, math.exp(float(found[1]))
