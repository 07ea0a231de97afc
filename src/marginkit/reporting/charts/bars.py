"""One bar a name, and how often values fall into bins."""

from __future__ import annotations

import math
from itertools import pairwise

from markupsafe import Markup

from marginkit.reporting.blocks import Bars, Histogram
from marginkit.reporting.charts.frame import Frame, drawing, whisker
from marginkit.reporting.elements import tag
from marginkit.reporting.numbers import number, spread, ticks

_LONGEST_NAME = 11


def draw_bars(figure: Bars, *, title: str, words: str, mark: str) -> tuple[Markup, None]:
    """Upright bars from 0 with intervals; names under them, shortened where they do not fit."""
    values = [value for value in figure.values if math.isfinite(value)]
    if not values:
        return tag("p", "There is nothing to draw yet.", class_="empty"), None
    reference = figure.reference if figure.reference and math.isfinite(figure.reference[0]) else None
    edges = [*(figure.low or ()), *(figure.high or ()), *([reference[0]] if reference else [])]
    y_range = spread([*values, *edges], zero=True)
    frame = Frame((0, len(figure.labels)), y_range, y_label=figure.y_label)
    parts = [frame.axes([], ticks(*y_range))]
    room = (frame.right - frame.left) / len(figure.labels)
    longest = max(4, min(_LONGEST_NAME + 4, int(room / 6.2)))
    for at, (name, value) in enumerate(zip(figure.labels, figure.values, strict=True)):
        middle = frame.x(at + 0.5)
        if math.isfinite(value):
            top, foot = sorted((frame.y(value), frame.y(0)))
            hint = tag("title", f"{name}: {number(value)}")
            width = min(0.62 * room, 46)
            parts.append(
                tag("rect", hint, class_="bar", x=middle - width / 2, y=top, width=width, height=max(foot - top, 0.5))
            )
        if figure.low is not None and figure.high is not None:
            parts.append(whisker(5, middle, frame.y(figure.low[at]), frame.y(figure.high[at])))
        short = name if len(name) <= longest else name[: longest - 1] + "…"
        parts.append(
            tag("text", tag("title", name), short, class_="tick", x=middle, y=frame.bottom + 15, text_anchor="middle")
        )
    if reference is not None:
        value, name = reference
        at_y = frame.y(value)
        parts.append(tag("line", class_="ideal", x1=frame.left, x2=frame.right, y1=at_y, y2=at_y))
        parts.append(tag("text", name, class_="tick above", x=frame.right, y=at_y - 4, text_anchor="end"))
    return drawing(*parts, title=title, words=words, mark=mark), None


def draw_histogram(figure: Histogram, *, title: str, words: str, mark: str) -> tuple[Markup, None]:
    """Bars side by side."""
    most = max(figure.counts, default=0)
    if not most:
        return tag("p", "There is nothing to count.", class_="empty"), None
    low, high = figure.edges[0], figure.edges[-1]
    frame = Frame((low, high), (0, most * 1.05), figure.x_label, figure.y_label)
    parts = [frame.axes(ticks(low, high), ticks(0, most * 1.05))]
    for count, (left, right) in zip(figure.counts, pairwise(figure.edges), strict=True):
        if count:
            hint = tag("title", f"{number(count)} from {number(left)} to {number(right)}")
            x, y, width = frame.x(left) + 0.5, frame.y(count), max(frame.x(right) - frame.x(left) - 1, 0.5)
            parts.append(tag("rect", hint, class_="bar", x=x, y=y, width=width, height=frame.y(0) - y))
    return drawing(*parts, title=title, words=words, mark=mark), None
