"""Curves over one axis."""

from __future__ import annotations

import math
from dataclasses import replace

from markupsafe import Markup

from marginkit.reporting.blocks import Lines, Series
from marginkit.reporting.charts.frame import LOOKS, Frame, drawing, legend, marker, route
from marginkit.reporting.elements import tag
from marginkit.reporting.numbers import BEYOND, number, spread, ticks

_FEW_POINTS = 24
_MOST_POINTS = 400


def thinned(series: Series, most: int = _MOST_POINTS) -> Series:
    """At most so many points: neighbours are replaced by their mean, so that no page grows with its run.

    Example:
        >>> thinned(Series("a", [(0, 1.0), (1, 3.0), (2, 5.0), (3, 7.0)]), most=2).points
        [(0.5, 2.0), (2.5, 6.0)]
    """
    step = math.ceil(len(series.points) / most)
    if step <= 1:
        return series

    def means(values: list[float]) -> list[float]:
        cut = [values[at : at + step] for at in range(0, len(values), step)]
        kept = [[value for value in part if math.isfinite(value)] for part in cut]
        return [sum(part) / len(part) if part else math.nan for part in kept]

    x, y = (means([point[axis] for point in series.points]) for axis in (0, 1))
    return replace(series, points=list(zip(x, y, strict=True)))


def draw_lines(figure: Lines, *, title: str, words: str, mark: str) -> tuple[Markup, Markup | None]:
    """The picture, and its legend if there are several lines."""
    series = [thinned(_with_a_place(one)) for one in figure.series]
    places = [place for one in series for place in one.points]
    if not any(math.isfinite(y) for _, y in places):
        return tag("p", "There is nothing to draw yet.", class_="empty"), None
    x_low, x_high = min(x for x, _ in places), max(x for x, _ in places)
    if x_low == x_high:
        x_low, x_high = spread([x_low])
    y_range = spread((y for _, y in places), zero=figure.zero)
    frame = Frame((x_low, x_high), y_range, figure.x_label, figure.y_label)
    parts = [frame.axes(ticks(x_low, x_high), ticks(*y_range))]
    if figure.zero and y_range[0] < 0 < y_range[1]:
        parts.append(tag("line", class_="zero", x1=frame.left, x2=frame.right, y1=frame.y(0), y2=frame.y(0)))
    for which, one in enumerate(series):
        look = f"l c{which % LOOKS}{' dashed' if one.dashed else ''}"
        at = [(frame.x(x), frame.y(y)) for x, y in one.points]
        parts.append(tag("path", class_=look, d=route(at)))
        if len(one.points) <= _FEW_POINTS:
            parts += [
                marker(which, *place, f"{one.name}: {number(y)} at {number(x)}")
                for place, (x, y) in zip(at, one.points, strict=True)
                if math.isfinite(y)
            ]
    picture = drawing(*parts, title=title, words=words, mark=mark)
    return picture, legend([(one.name, one.dashed) for one in series]) if len(series) > 1 else None


def _with_a_place(one: Series) -> Series:
    """Without the points that have no place on the axis of x."""
    return replace(one, points=[point for point in one.points if abs(point[0]) < BEYOND])
