"""Grading by ratings: a scale made into logits by gamma, and several raters whose noise shrinks the target."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from itertools import combinations
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from marginkit.data.graded import Grades, paired_for_grading, pairs_inside, response_starts
from marginkit.data.grades import just_noticeable_difference
from marginkit.data.rater_noise import (
    RaterNoise,
    fit_rater_noise,
    pooled_variance,
    prob_better,
    shrink,
    slope_without_noise,
)
from marginkit.data.ratings import ASPECT_WEIGHTS, MapName, ScaleMap, fit_map, weigh_aspects
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.records import Rating

Array = npt.NDArray[np.float64]
By = Literal["all", "source", "rater"]
NO_GRADE, NO_RATER = "no grade", "a rating without a name of its rater"
_UNITS: Mapping[str, str] = {
    "linear": "grades",
    "zscore": "standard deviations of the grades",
    "quantile": "logistic quantiles of the grades",
    "quantile_normal": "normal quantiles of the grades",
    "log": "in the log of counts",
}


def grade_by_ratings(
    groups: Groups,
    *,
    gamma: float | None = None,
    map: MapName = "linear",
    by: By = "all",
    weights: Mapping[str, float] | str | None = None,
    prior: float = 1.0,
) -> Grades:
    """Utility = gamma * map(grade).

    Args:
        groups: groups with grades, ratings or aspects.
        gamma: logits per unit of the mapped scale: per grade (linear), per standard deviation (zscore), per logistic or
            normal quantile; 1 for log, whose unit is a logit already.
        map: linear, zscore, quantile, quantile_normal or log (counts of up-votes), see `fit_map`.
        by: one map for all, one for each source, or one for each rater (whose mapped ratings are then averaged).
        weights: weight by aspect, or a name in `ASPECT_WEIGHTS`; the grade is then the weighted sum.
        prior: of the log map, counts.

    Raises:
        BadInput: there is no gamma (the message names one to start from), or nothing to map.

    Example:
        >>> from marginkit.records import Group, Response
        >>> group = Group("a", "?", (Response("x", grade=4.0), Response("y", grade=2.0), Response("z")))
        >>> grades = grade_by_ratings(Groups.from_iterable([group]), gamma=0.5)
        >>> grades.values, grades.ungraded
        (array([ 2.,  1., nan]), {'no grade': 1})
    """
    if by not in ("all", "source", "rater"):
        raise BadInput(f"by={by!r}: one map for all, for each source or for each rater")
    if by == "rater" and weights is not None:
        raise BadInput("by=rater maps single ratings, weights add up aspects: give one of the two")
    place: list[str] = []
    said: list[Any] = []  # of every response what is read of it: its ratings, aspects or grade
    for group in groups:
        place += [group.source or "" if by == "source" else ""] * len(group.responses)
        said += [r.ratings if by == "rater" else r.grade if weights is None else r.aspects for r in group.responses]
    if by == "rater":
        mapped, maps, ungraded = _mapped_by_rater(said, map, prior)
    else:
        grade = _grades(said, weights)
        keys = np.array(place, dtype=object)
        mapped, maps = np.full(len(grade), np.nan), {}
        for key in sorted(set(keys[~np.isnan(grade)])):
            own = keys == key
            maps[key] = fit_map(grade[own], map, prior=prior)
            mapped[own] = np.where(np.isnan(grade[own]), np.nan, maps[key].forward(grade[own]))
        missing = int(np.isnan(grade).sum())
        ungraded = {NO_GRADE if weights is None else "an aspect is missing": missing} if missing else {}
    if not maps:
        raise BadInput("no response has what how=ratings needs: a grade, ratings by named raters, or aspects")
    if map == "log":
        gamma = 1.0 if gamma is None else gamma
        if np.allclose(mapped[~np.isnan(mapped)], np.log1p(prior)):
            raise BadInput("map=log is for counts of up-votes, and no grade is above 1; use map=linear or quantile")
    if gamma is None:
        raise BadInput(f"how=ratings needs gamma, logits per unit of the {map} map{_start(groups, mapped)}")
    facts: dict[str, Any] = {
        "gamma": gamma,
        "just noticeable difference": just_noticeable_difference(gamma),
        "unit": _UNITS[map],
        "maps": {key or "all": one.to_json() for key, one in sorted(maps.items())},
    }
    return Grades(groups, "utility", gamma * mapped, ungraded, facts)


def _grades(said: list[Any], weights: Mapping[str, float] | str | None) -> Array:
    if weights is None:
        return np.array([np.nan if grade is None else grade for grade in said], dtype=float)
    if isinstance(weights, str):
        if weights not in ASPECT_WEIGHTS:
            raise BadInput(f"weights={weights}: give {{aspect: weight}}, or one of {', '.join(ASPECT_WEIGHTS)}")
        weights = ASPECT_WEIGHTS[weights]
    if not isinstance(weights, Mapping) or not all(isinstance(w, int | float) for w in weights.values()):
        raise BadInput(f"weights={weights!r}: give {{aspect: number}}, or one of {', '.join(ASPECT_WEIGHTS)}")
    return weigh_aspects(said, weights)


def _mapped_by_rater(
    said: list[tuple[Rating, ...]], name: MapName, prior: float
) -> tuple[Array, dict[str, ScaleMap], dict[str, int]]:
    """The mean of a response's mapped ratings; a rater of one rating, or of equal ones, gets the map of all of them."""
    by_rater: dict[str, list[float]] = {}
    for ratings in said:
        for rating in ratings:
            if rating.rater is not None and rating.aspect is None:
                by_rater.setdefault(rating.rater, []).append(rating.value)
    maps: dict[str, ScaleMap] = {}
    if by_rater:
        common = fit_map(np.array([value for own in by_rater.values() for value in own]), name, prior=prior)
        for rater, own in by_rater.items():
            maps[rater] = fit_map(np.array(own), name, prior=prior) if len(set(own)) > 1 else common
    mapped, ungraded = np.full(len(said), np.nan), Counter[str]()
    for at, ratings in enumerate(said):
        overall = [rating for rating in ratings if rating.aspect is None]
        if not overall or any(rating.rater is None for rating in overall):
            ungraded["no ratings" if not overall else NO_RATER] += 1
            continue
        mapped[at] = np.mean([maps[str(r.rater)].forward(np.array([r.value]))[0] for r in overall])
    return mapped, maps, dict(ungraded)


def _start(groups: Groups, mapped: Array) -> str:
    """A gamma to start from, in words."""
    left, right = pairs_inside(response_starts(groups))
    gaps = np.abs(mapped[left] - mapped[right])
    gaps = gaps[gaps > 0]
    if not gaps.size:
        return ""
    return f"; gamma={math.log(3) / float(np.median(gaps)):.3g} puts the median gap at 75%"


def grade_by_raters(
    groups: Groups, *, gamma: float | None = None, aspect: str | None = None, prior: Literal["fit", "flat"] = "fit"
) -> Grades:
    """Prob of a pair from the ratings of several raters: the noisier the grade, the nearer to one half.

    A rating is the true grade plus noise (see `fit_rater_noise`); what is left of a difference of means is normal, with
    the mean and variance of `shrink`, and prob is `prob_better` of it. Where the same named raters rated both responses
    their differences are taken first, which removes a rater's severity, and the noise is that of the differences.

    Args:
        groups: groups with ratings, two or more of at least one response.
        gamma: logits per grade; without it prob is that the true grade is higher.
        aspect: use the ratings of this aspect.
        prior: fit (true grades of a prompt are spread as far as the data says) or flat.

    Raises:
        BadInput: no response has two ratings, an aspect that no rating has, or an unknown prior.

    Example:
        >>> from marginkit.records import Group, Rating, Response
        >>> def rated(text, *values): return Response(text, 1.0, tuple(Rating(None, value) for value in values))
        >>> group = Group("a", "?", (rated("x", 4.0, 6.0), rated("y", 1.0, 3.0)))
        >>> grades = grade_by_raters(Groups.from_iterable([group]), prior="flat")
        >>> grades.values.round(3)
        array([0.983])
    """
    if prior not in ("fit", "flat"):
        raise BadInput(f"prior={prior!r}: the prior on true grades is fit or flat")
    paired = paired_for_grading(groups)
    if aspect is not None:
        held = {r.aspect for group in groups for response in group.responses for r in response.ratings if r.aspect}
        if aspect not in held:
            known = ", ".join(sorted(held)) or "no aspects"
            raise BadInput(f"aspect={aspect}: no rating has it; the ratings have {known}")
    rated = _rated(paired, aspect)
    arrays = [[np.array([value for _, value in ratings]) for ratings in group] for group in rated]
    noise = fit_rater_noise(arrays, flat=prior == "flat")
    values, ungraded, shared = [], 0, []
    for group, ratings, numbers in zip(paired, rated, arrays, strict=True):
        center = np.mean([own.mean() for own in numbers if len(own)]) if any(map(len, numbers)) else 0.0
        for pair in group.pairs:
            sides = [ratings[pair.chosen], ratings[pair.rejected]]
            if not all(sides):
                values.append((np.nan, np.nan))
                ungraded += 1
                continue
            if (differences := _differences(*sides)) is not None:
                shared.append((len(values), differences))
            means, variances = zip(
                *(shrink(own.mean() - center, len(own), noise.s2, noise.t2) for own in
                  (numbers[pair.chosen], numbers[pair.rejected])), strict=True
            )  # fmt: skip
            values.append((float(means[0] - means[1]), float(variances[0] + variances[1])))
    facts = {"noise": noise.to_json()} | _with_shared_raters(values, shared, rated, noise)
    moments = np.array(values, dtype=float).reshape(-1, 2)
    known = ~np.isnan(moments[:, 0])
    prob = np.full(len(moments), np.nan)
    prob[known] = prob_better(moments[known, 0], moments[known, 1], gamma=gamma)
    if gamma is not None:
        facts |= {"gamma": gamma, "just noticeable difference": just_noticeable_difference(gamma), "unit": "grades"}
    reasons = {"a response without ratings": ungraded} if ungraded else {}
    return Grades(paired, "prob", prob, reasons, facts)


def _differences(chosen: list[tuple[str | None, float]], rejected: list[tuple[str | None, float]]) -> Array | None:
    """Rater by rater chosen - rejected, where the same named raters rated both once."""
    first, second = dict(chosen), dict(rejected)
    names = set(first)
    if None in names or names != set(second) or len(first) < len(chosen) or len(second) < len(rejected):
        return None
    return np.array([first[name] - second[name] for name in sorted(map(str, names))])


def gamma_of_true_grades(groups: Groups, gamma: float, *, aspect: str | None = None) -> float:
    """The gamma of true grades, from one that holds for mean ratings with their noise, see `slope_without_noise`.

    `grade_by_raters` averages over that noise: with the gamma of noisy grades it would be counted twice.

    Args:
        groups: as for `grade_by_raters`.
        gamma: logits per grade, a mean of ratings.
        aspect: of the ratings.

    Raises:
        BadInput: no response has two ratings, or the noise is too large.
    """
    rated = _rated(groups, aspect)
    every = _every_difference(rated)
    if any(len(differences) > 1 for differences in every):
        s2, spread = _spread(every)
        return slope_without_noise(gamma, spread, s2 * float(np.mean([1 / len(own) for own in every])))
    noise = fit_rater_noise([[np.array([value for _, value in own]) for own in group] for group in rated])
    thinness = float(np.mean([1 / len(own) for group in rated for own in group if own]))
    return slope_without_noise(gamma, 2 * noise.t2, 2 * noise.s2 * thinness)


Rated = list[list[list[tuple[str | None, float]]]]


def _rated(groups: Groups, aspect: str | None) -> Rated:
    """Of every group, of every response, who rated it how."""
    return [
        [[(r.rater, r.value) for r in response.ratings if r.aspect == aspect] for response in group.responses]
        for group in groups
    ]


def _every_difference(rated: Rated) -> list[Array]:
    """Rater by rater, of every two responses of a prompt that the same named raters rated."""
    return [
        differences
        for group in rated
        for one, other in combinations(filter(None, group), 2)
        if (differences := _differences(one, other)) is not None
    ]


def _spread(every: list[Array]) -> tuple[float, float]:
    """The variance of a rater's difference about the true one, and of true differences."""
    s2, _ = pooled_variance(every)
    return s2, max(float(np.mean([own.mean() ** 2 - s2 / len(own) for own in every])), 0.0)


def _with_shared_raters(
    values: list[tuple[float, float]],
    shared: list[tuple[int, Array]],
    rated: Rated,
    noise: RaterNoise,
) -> dict[str, Any]:
    """Replace the moments of pairs whose raters rated both; noise and spread are those of the differences.

    The spread is the mean square of the mean differences, less s2 / n: the t2 of single ratings would take a rater's
    severity, which both responses share, for noise that the means lack. Both are taken over every two responses of a
    prompt: pairs of the best and the worst would look further apart than responses are.
    """
    every = _every_difference(rated) if shared else []
    if not any(len(differences) > 1 for differences in every):
        return {"pairs by rater's differences": 0}
    s2, spread = _spread(every)
    t2 = np.inf if np.isinf(noise.t2) else spread
    for at, differences in shared:
        mean, variance = shrink(differences.mean(), len(differences), s2, t2)
        values[at] = (float(mean), float(variance))
    found = {"pairs by rater's differences": len(shared), "variance of a difference": s2}
    return found if np.isinf(t2) else found | {"variance of true differences": t2}
