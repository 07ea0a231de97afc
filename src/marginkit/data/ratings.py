"""Ratings on one scale: aspects weighed into one grade, and maps from a dataset's scale to another, each invertible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from scipy.special import logit, ndtri

from marginkit.data.dialects.helpsteer import WEIGHTS as HELPSTEER2_70B
from marginkit.errors import BadInput

Array = npt.NDArray[np.float64]
MapName = Literal["linear", "zscore", "quantile", "quantile_normal", "log"]

ASPECT_WEIGHTS: Mapping[str, Mapping[str, float]] = {
    "helpsteer2_70b": HELPSTEER2_70B,
    "helpsteer2_340b": {
        "helpfulness": 0.3,
        "correctness": 0.74,
        "coherence": 0.46,
        "complexity": 0.47,
        "verbosity": -0.33,
    },
}
"""Weights by name: those that NVIDIA states for its reward models on HelpSteer2."""


def weigh_aspects(aspects: Sequence[Mapping[str, float]], weights: Mapping[str, float]) -> Array:
    """One grade of several: sum of weight * aspect; NaN where one of the weighed aspects is missing.

    Args:
        aspects: grades by aspect of every response, dataset units.
        weights: weight by aspect; negative where more is worse (verbosity).

    Returns:
        [response] grades, in the unit of the weighted sum.

    Raises:
        BadInput: there are no weights, or none of the responses has one of the aspects.

    Example:
        >>> weigh_aspects([{"helpfulness": 4.0, "verbosity": 2.0}, {"helpfulness": 3.0}], {"helpfulness": 1.0})
        array([4., 3.])
    """
    if not weights:
        raise BadInput("weights is empty: give a weight for at least one aspect")
    known = {name for row in aspects for name in row}
    if missing := sorted(set(weights) - known):
        held = ", ".join(sorted(known)) or "no aspects"
        raise BadInput(f"weights name the aspect {missing[0]!r}, which no response has; the data has {held}")
    return np.array([sum(w * row.get(name, np.nan) for name, w in weights.items()) for row in aspects], dtype=float)


class ScaleMap(Protocol):
    """A strictly increasing map of a scale, fitted on grades."""

    def forward(self, values: Array) -> Array:
        """From dataset units."""
        ...

    def invert(self, values: Array) -> Array:
        """Back to dataset units."""
        ...

    def to_json(self) -> dict[str, Any]:
        """What it needs to be inverted: plain values."""
        ...


@dataclass(frozen=True, slots=True)
class Standardising:
    """(value - center) / scale; with center 0 and scale 1 the grades as they are."""

    center: float = 0.0
    scale: float = 1.0

    def forward(self, values: Array) -> Array:
        """In units of the scale."""
        return (values - self.center) / self.scale

    def invert(self, values: Array) -> Array:
        """In dataset units."""
        return values * self.scale + self.center

    def to_json(self) -> dict[str, Any]:
        """Center and scale."""
        return {"center": self.center, "scale": self.scale}


@dataclass(frozen=True, slots=True)
class Ranking:
    """The share of grades below (equal ones count half), as a logistic or normal quantile.

    Args:
        grades: the distinct grades it was fitted on, ascending.
        quantiles: their place on the new scale; between them it is linear, outside it is flat.
    """

    grades: Array
    quantiles: Array

    def forward(self, values: Array) -> Array:
        """Quantiles of the logistic or normal distribution."""
        return np.asarray(np.interp(values, self.grades, self.quantiles), dtype=float)

    def invert(self, values: Array) -> Array:
        """Grades in dataset units."""
        return np.asarray(np.interp(values, self.quantiles, self.grades), dtype=float)

    def to_json(self) -> dict[str, Any]:
        """The knots, at most 100 of them."""
        few = np.unique(np.linspace(0, len(self.grades) - 1, 100).round().astype(int))
        return {"grades": self.grades[few].tolist(), "quantiles": self.quantiles[few].tolist()}


@dataclass(frozen=True, slots=True)
class LogCount:
    """log(max(count, floor) + prior): a difference of two is the log ratio of up-votes.

    Counts below the floor are taken as the floor, so it can be inverted from there on only.

    Args:
        prior: added to every count.
        floor: the least count.
        raised: how many counts it was fitted on are below the floor.
    """

    prior: float = 1.0
    floor: float = 1.0
    raised: int = 0

    def forward(self, values: Array) -> Array:
        """Logits, up to a constant."""
        return np.log(np.maximum(values, self.floor) + self.prior)

    def invert(self, values: Array) -> Array:
        """Counts."""
        return np.exp(values) - self.prior

    def to_json(self) -> dict[str, Any]:
        """Prior, floor and how many counts were raised to it."""
        return {"prior": self.prior, "floor": self.floor, "raised": self.raised}


def fit_map(values: Array, name: MapName, *, prior: float = 1.0) -> ScaleMap:
    """Fit a map from grades to another scale.

    linear: as they are. zscore: (g - mean) / sd, population sd. quantile: logit(q), q the share of grades below, equal
    ones counted half; quantile_normal: the normal quantile of q. log: log(max(g, 1) + prior), for counts of up-votes.

    Args:
        values: grades in dataset units, NaN where absent.
        name: which map.
        prior: added to every count, >= 0 (log only).

    Returns:
        The map; `invert` gives the grades back.

    Raises:
        BadInput: an unknown map, no grades, grades without any spread (zscore), or a negative prior.

    Example:
        >>> fit_map(np.array([1.0, 2.0, 2.0, 3.0]), "quantile").forward(np.array([2.0]))
        array([0.])
    """
    known = np.asarray(values, dtype=float)
    known = known[~np.isnan(known)]
    if not known.size:
        raise BadInput("no grade to fit a map on")
    if name == "linear":
        return Standardising()
    if name == "zscore":
        if np.ptp(known) == 0:
            raise BadInput(f"map=zscore: all {known.size} grades are {known[0]:g}, so there is no spread to divide by")
        return Standardising(float(known.mean()), float(known.std()))
    if name in ("quantile", "quantile_normal"):
        grades, counts = np.unique(known, return_counts=True)
        share = (np.cumsum(counts) - counts / 2) / known.size
        return Ranking(grades, np.asarray(logit(share) if name == "quantile" else ndtri(share), dtype=float))
    if name == "log":
        if prior < 0:
            raise BadInput(f"prior={prior:g}: give a count >= 0")
        return LogCount(prior, raised=int((known < 1).sum()))
    raise BadInput(f"map={name!r}: the maps are linear, zscore, quantile, quantile_normal, log")
