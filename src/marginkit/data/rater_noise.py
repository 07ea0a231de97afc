"""How far raters disagree, and what is left of a difference of means once that is taken into account."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit, ndtr

from marginkit.errors import BadInput

Array = npt.NDArray[np.float64]

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(24)
_LOGISTIC = np.arange(-40.0, 40.001, 0.25)
_DENSITY = 0.25 * expit(_LOGISTIC) * expit(-_LOGISTIC)


@dataclass(frozen=True, slots=True)
class RaterNoise:
    """What the ratings of a dataset say of raters and responses, squared dataset units.

    Args:
        s2: variance of one rating about the response's true grade.
        t2: variance of true grades about the mean of their prompt; infinite for a flat prior.
        responses: how many responses have two ratings or more: what s2 rests on.
    """

    s2: float
    t2: float
    responses: int

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; the reliability of one rating is t2 / (t2 + s2)."""
        reliability = 1.0 if np.isinf(self.t2) or self.t2 + self.s2 == 0 else self.t2 / (self.t2 + self.s2)
        between = None if np.isinf(self.t2) else self.t2
        return {"s2": self.s2, "t2": between, "responses": self.responses, "reliability": reliability}


def pooled_variance(samples: Sequence[Array]) -> tuple[float, int]:
    """The variance within samples: sum of squares about each sample's mean / sum of (n - 1).

    Args:
        samples: arrays of any length; those of one value say nothing.

    Returns:
        The variance and how many samples it rests on.

    Raises:
        BadInput: no sample has two values.

    Example:
        >>> pooled_variance([np.array([1.0, 3.0]), np.array([2.0]), np.array([5.0, 5.0, 5.0])])
        (0.6666666666666666, 2)
    """
    several = [np.asarray(sample, dtype=float) for sample in samples if len(sample) > 1]
    if not several:
        raise BadInput("no response has two ratings, so the raters' noise is unknown; use how=ratings")
    squares = sum(float(((sample - sample.mean()) ** 2).sum()) for sample in several)
    return squares / sum(len(sample) - 1 for sample in several), len(several)


def fit_rater_noise(prompts: Sequence[Sequence[Array]], *, flat: bool = False) -> RaterNoise:
    """Estimate the noise of ratings and the spread of true grades.

    rating = q + e, e ~ N(0, s2), q ~ N(mean of the prompt, t2). s2 is the pooled variance within responses; t2 is the
    pooled variance of response means within prompts, less s2 * mean(1/n), not below 0. Standard analysis of variance.

    Args:
        prompts: of every prompt, of every response, its ratings (dataset units).
        flat: no prior: t2 = infinity.

    Raises:
        BadInput: no response has two ratings.

    Example:
        >>> fit_rater_noise([[np.array([1.0, 3.0]), np.array([6.0, 8.0])]])
        RaterNoise(s2=2.0, t2=11.5, responses=2)
    """
    s2, count = pooled_variance([ratings for responses in prompts for ratings in responses])
    between, freedom, thinness = 0.0, 0, 0.0
    for responses in prompts:
        rated = [ratings for ratings in responses if len(ratings)]
        if len(rated) > 1:
            means = np.array([ratings.mean() for ratings in rated])
            between += float(((means - means.mean()) ** 2).sum())
            freedom += len(rated) - 1
            thinness += (len(rated) - 1) * float(np.mean([1 / len(ratings) for ratings in rated]))
    t2 = np.inf if flat or not freedom else max(between / freedom - s2 * thinness / freedom, 0.0)
    return RaterNoise(s2, float(t2), count)


def shrink(mean: npt.ArrayLike, count: npt.ArrayLike, s2: float, t2: float) -> tuple[Array, Array]:
    """Posterior mean and variance of a true grade about its prompt's mean, given the mean of n ratings.

    mean * n t2 / (n t2 + s2), variance t2 s2 / (n t2 + s2); with a flat prior the mean itself and s2 / n.

    Args:
        mean: mean rating less the prompt's mean, dataset units.
        count: n >= 1.
        s2: variance of one rating.
        t2: variance of the prior; infinite if flat.

    Example:
        >>> [value.tolist() for value in shrink([2.0], [3], 1.0, 1.0)]
        [[1.5], [0.25]]
    """
    m, n = np.asarray(mean, dtype=float), np.asarray(count, dtype=float)
    if np.isinf(t2):
        return m + 0.0 * n, s2 / n
    if t2 == 0:
        return 0.0 * m * n, 0.0 * n
    weight = n * t2 / (n * t2 + s2)
    return m * weight, t2 * (1 - weight)


def slope_without_noise(slope: float, spread: float, error: float) -> float:
    """The slope of P on true differences, from that on differences known with an error.

    With true differences d ~ N(0, T), observed ones d + N(0, E) and r = T / (T + E), d given the observed one is normal
    about r times it with variance T (1 - r), and a logistic curve averaged over a normal is one of slope
    g / sqrt(1 + c V), c = pi / 8 * g^2 (MacKay 1992). Solved for g: s / sqrt(r^2 - pi / 8 * s^2 T (1 - r)).

    Args:
        slope: s > 0, logits per dataset unit of the observed difference.
        spread: T, squared dataset units.
        error: E >= 0.

    Raises:
        BadInput: no slope on true differences gives so steep a slope on noisy ones.

    Example:
        >>> slope_without_noise(0.7, 2.0, 0.0), round(slope_without_noise(0.7, 2.0, 1.0), 3)
        (0.7, 1.245)
    """
    reliability = spread / (spread + error) if error > 0 else 1.0
    rest = reliability**2 - np.pi / 8 * slope**2 * spread * (1 - reliability)
    if rest <= 0:
        raise BadInput(
            f"gamma={slope:.3g} goes with the grades as they are, and the raters' noise is too large to say which "
            "gamma goes with true ones; use how=ratings, or give a number"
        )
    return float(slope / np.sqrt(rest))


def prob_better(difference: npt.ArrayLike, variance: npt.ArrayLike, *, gamma: float | None = None) -> Array:
    """P(the first is better), given a difference of grades that is known with an error.

    Without gamma, P(true difference > 0) = Phi(m / sqrt(V)). With gamma, the mean of sigmoid(gamma * d) over
    d ~ N(m, V): the target a noiseless grade would give, averaged over what it may be. V = 0 gives sigmoid(gamma * m),
    gamma -> infinity the first form, m = 0 one half in any case. Ours: integrated numerically, to 1e-9.

    Args:
        difference: m, dataset units.
        variance: V >= 0, squared dataset units.
        gamma: logits per dataset unit.

    Example:
        >>> prob_better([1.0, 1.0, 0.0], [1.0, 0.0, 2.0]).round(4)
        array([0.8413, 1.    , 0.5   ])
        >>> prob_better([1.0, 1.0], [0.0, 4.0], gamma=1.0).round(4)
        array([0.7311, 0.6477])
    """
    m, v = np.broadcast_arrays(np.asarray(difference, dtype=float), np.asarray(variance, dtype=float))
    if gamma is None:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.where(v > 0, ndtr(m / np.sqrt(v)), (np.sign(m) + 1) / 2))
    if not (np.isfinite(gamma) and gamma > 0):
        raise BadInput(f"gamma={gamma}: give a number > 0, logits per dataset unit")
    made = np.empty(m.shape)
    at, spread = gamma * m, gamma * np.sqrt(v)
    narrow = spread < 0.75
    # Narrow: Gauss-Hermite over d. Wide: the same mean as P(d + logistic noise > 0), smooth in the noise.
    made[narrow] = expit(at[narrow, None] + spread[narrow, None] * _NODES) @ (_WEIGHTS / np.sqrt(2 * np.pi))
    for chosen in np.array_split(np.flatnonzero(~narrow), max(1, int(np.sum(~narrow)) // 4096)):
        place = np.unravel_index(chosen, m.shape)
        made[place] = ndtr((at[place][:, None] + _LOGISTIC) / spread[place][:, None]) @ _DENSITY
    return np.clip(made, 0.0, 1.0)
