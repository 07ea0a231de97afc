"""How many pairs fall where, in a plane of two quantities."""

from __future__ import annotations

import math
from itertools import pairwise

from markupsafe import Markup

from marginkit.reporting.blocks import Density
from marginkit.reporting.charts.frame import Frame, drawing, route
from marginkit.reporting.elements import tag
from marginkit.reporting.numbers import number, ticks

_SHADES = 5


def draw_density(figure: Density, *, title: str, words: str, mark: str) -> tuple[Markup, None]:
    """Squares, the darker the more there are (by the logarithm), with the line y = x where it means something."""
    most = max((count for column in figure.counts for count in column), default=0)
    if not most:
        return tag("p", "There are no pairs to show.", class_="empty"), None
    x_edges, y_edges = list(figure.x_edges), list(figure.y_edges)
    frame = Frame((x_edges[0], x_edges[-1]), (y_edges[0], y_edges[-1]), figure.x_label, figure.y_label, height=300)
    parts = [frame.axes(ticks(x_edges[0], x_edges[-1]), ticks(y_edges[0], y_edges[-1]))]
    for column, (left, right) in zip(figure.counts, pairwise(x_edges), strict=True):
        for count, (low, high) in zip(column, pairwise(y_edges), strict=True):
            if count:
                shade = min(_SHADES, 1 + int(_SHADES * math.log1p(count) / (math.log1p(most) + 1e-9)))
                parts.append(
                    tag(
                        "rect",
                        tag(
                            "title",
                            f"{count:,}: x {number(left)} to {number(right)}, y {number(low)} to {number(high)}",
                        ),
                        class_=f"d{shade}",
                        x=frame.x(left),
                        y=frame.y(high),
                        width=frame.x(right) - frame.x(left),
                        height=frame.y(low) - frame.y(high),
                    )
                )
    if figure.diagonal:
        low = max(x_edges[0], y_edges[0])
        high = min(x_edges[-1], y_edges[-1])
        if low < high:
            places = [(frame.x(low), frame.y(low)), (frame.x(high), frame.y(high))]
            parts.append(tag("path", class_="ideal", d=route(places)))
    return drawing(*parts, title=title, words=words, mark=mark, height=300), None
