"""LOWESS: a curve through a cloud of points, from local lines, robust against single points far off."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from marginkit.errors import BadInput

Array = npt.NDArray[np.float64]


def lowess(
    x: npt.ArrayLike, y: npt.ArrayLike, *, fraction: float = 0.5, robust: int = 2, points: int | None = 200
) -> Array:
    """The smoothed value at every x: a line fitted to the nearest points, weighted by tricube of the distance.

    Weights (1 - (d / d_max)^3)^3 over the k = fraction * n nearest points; then `robust` rounds in which a point far
    off counts less, by bisquare of its residual over 6 medians. Source: Cleveland 1979. For speed the line is fitted at
    `points` places, equally many data apart, and the curve is linear between them; None fits it at every x.

    Args:
        x: [n] where.
        y: [n] what.
        fraction: share of the points behind each line, in (0, 1].
        robust: rounds of robustness, >= 0.
        points: places to fit at, >= 2.

    Returns:
        [n] the curve at x.

    Raises:
        BadInput: fewer than 3 points, lengths that differ, a value that is not finite, or an option out of range.

    Example:
        >>> lowess([1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 4.0, 6.0, 8.0, 10.0]).round(6)
        array([ 2.,  4.,  6.,  8., 10.])
    """
    at, value = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if at.shape != value.shape or at.ndim != 1 or len(at) < 3:
        raise BadInput(f"LOWESS needs at least 3 points, x and y alike; got {at.shape} and {value.shape}")
    if not (np.isfinite(at).all() and np.isfinite(value).all()):
        raise BadInput("LOWESS needs finite numbers")
    if not 0 < fraction <= 1 or robust < 0 or (points is not None and points < 2):
        raise BadInput(f"fraction={fraction}, robust={robust}, points={points}: need 0 < fraction <= 1, >= 0 and >= 2")
    order = np.argsort(at, kind="stable")
    xs, ys = at[order], value[order]
    places = np.unique(xs)
    if points is not None and len(places) > points:
        places = np.unique(xs[np.linspace(0, len(xs) - 1, points).round().astype(int)])
    near = min(len(xs), max(2, int(fraction * len(xs) + 1e-9)))
    trust = np.ones(len(xs))
    curve = ys
    for turn in range(robust + 1):
        curve = np.interp(xs, places, _lines(xs, ys, trust, places, near))
        residual = np.abs(ys - curve)
        scale = 6 * float(np.median(residual))
        if turn == robust or scale <= 1e-12 * (1 + float(np.abs(ys).max())):
            break
        trust = np.square(1 - np.minimum(residual / scale, 1) ** 2)
    made = np.empty(len(xs))
    made[order] = curve
    return made


def _lines(xs: Array, ys: Array, trust: Array, places: Array, near: int) -> Array:
    """At every place, the value of the line through the nearest points."""
    made = np.empty(len(places))
    start = 0
    for number, place in enumerate(places):
        while start + near < len(xs) and xs[start + near] - place < place - xs[start]:
            start += 1
        window = slice(start, start + near)
        away = xs[window] - place
        reach = float(np.abs(away).max())
        weight = trust[window] * ((1 - (np.abs(away) / reach) ** 3) ** 3 if reach > 0 else 1.0)
        total = float(weight.sum())
        if total <= 0:  # every near point was set aside
            weight, total = np.ones(near), float(near)
        mean_x = float(weight @ away) / total
        mean_y = float(weight @ ys[window]) / total
        spread = float(weight @ (away - mean_x) ** 2)
        slope = float(weight @ ((away - mean_x) * ys[window])) / spread if spread > 1e-12 * total * reach**2 else 0.0
        made[number] = mean_y - slope * mean_x
    return made
