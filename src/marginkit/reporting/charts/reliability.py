"""Is the confidence right? What came of it against what was said."""

from __future__ import annotations

import math

from markupsafe import Markup

from marginkit.reporting.blocks import Reliability
from marginkit.reporting.charts.frame import Frame, drawing, marker, route, whisker
from marginkit.reporting.elements import tag
from marginkit.reporting.numbers import ticks

_STRIP = 34.0


def draw_reliability(figure: Reliability, *, title: str, words: str, mark: str) -> tuple[Markup, None]:
    """Outcome against confidence with the diagonal of a right one, intervals, and how many pairs each bin has."""
    bins = figure.bins
    if not bins:
        return tag("p", "No pair has a label that a probability could be held against.", class_="empty"), None
    lowest = min(end for one in bins for end in (one.low, one.outcome) if math.isfinite(end))
    y_range = (min(0.4, math.floor(lowest * 10) / 10), 1.0)
    frame = Frame((0.5, 1.0), y_range, "confidence (what the model says)", "right (what came of it)", height=300)
    parts = [frame.axes(ticks(0.5, 1.0), ticks(*y_range))]
    diagonal = route([(frame.x(0.5), frame.y(0.5)), (frame.x(1.0), frame.y(1.0))])
    parts.append(tag("path", class_="ideal", d=diagonal))
    most = max(one.count for one in bins)
    for one in bins:
        height, x = _STRIP * one.count / most, frame.x(max(0.5, one.confidence)) - 9
        hint = tag("title", f"{one.count:,} pairs")
        parts.append(tag("rect", hint, class_="count", x=x, y=frame.bottom - height, width=18, height=height))
    parts += [whisker(0, frame.x(one.confidence), frame.y(one.low), frame.y(one.high)) for one in bins]
    at = [(frame.x(one.confidence), frame.y(one.outcome)) for one in bins]
    parts.append(tag("path", class_="l c0", d=route(at)))
    parts += [
        marker(
            0,
            *place,
            f"says {one.confidence:.3f}, right {one.outcome:.3f} [{one.low:.3f}, {one.high:.3f}], {one.count:,} pairs",
        )
        for place, one in zip(at, bins, strict=True)
    ]
    return drawing(*parts, title=title, words=words, mark=mark, height=300), None
