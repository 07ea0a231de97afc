"""Is the confidence right? What came of it against what was said."""

from __future__ import annotations

import math

from markupsafe import Markup

from marginkit.reporting.blocks import Reliability
from marginkit.reporting.charts.frame import LOOKS, Frame, drawing, legend, marker, route, whisker
from marginkit.reporting.elements import tag
from marginkit.reporting.numbers import ticks

_STRIP = 34.0


def draw_reliability(figure: Reliability, *, title: str, words: str, mark: str) -> tuple[Markup, Markup | None]:
    """Outcome against confidence with the diagonal of a right one, intervals, and how many pairs each bin has."""
    drawn = [(name, list(bins)) for name, bins in figure.bins if bins]
    if not drawn:
        return tag("p", "No pair has a label that a probability could be held against.", class_="empty"), None
    lowest = min(end for _, bins in drawn for one in bins for end in (one.low, one.outcome) if math.isfinite(end))
    y_range = (min(0.4, math.floor(lowest * 10) / 10), 1.0)
    frame = Frame((0.5, 1.0), y_range, "confidence (what the model says)", "right (what came of it)", height=300)
    parts = [frame.axes(ticks(0.5, 1.0), ticks(*y_range))]
    diagonal = route([(frame.x(0.5), frame.y(0.5)), (frame.x(1.0), frame.y(1.0))])
    parts.append(tag("path", class_="ideal", d=diagonal))
    most = max(one.count for _, bins in drawn for one in bins)
    for which, (name, bins) in enumerate(drawn):
        if len(drawn) == 1:
            parts += [
                tag(
                    "rect",
                    tag("title", f"{one.count:,} pairs"),
                    class_="count",
                    x=frame.x(max(0.5, one.confidence)) - 9,
                    y=frame.bottom - _STRIP * one.count / most,
                    width=18,
                    height=_STRIP * one.count / most,
                )
                for one in bins
            ]
        aside = (which - (len(drawn) - 1) / 2) * 3
        parts += [whisker(which, frame.x(one.confidence) + aside, frame.y(one.low), frame.y(one.high)) for one in bins]
        at = [(frame.x(one.confidence) + aside, frame.y(one.outcome)) for one in bins]
        parts.append(tag("path", class_=f"l c{which % LOOKS}", d=route(at)))
        parts += [
            marker(
                which,
                *place,
                f"{name + ': ' if name else ''}says {one.confidence:.3f}, right {one.outcome:.3f} "
                f"[{one.low:.3f}, {one.high:.3f}], {one.count:,} pairs",
            )
            for place, one in zip(at, bins, strict=True)
        ]
    picture = drawing(*parts, title=title, words=words, mark=mark, height=300)
    return picture, legend([(name, False) for name, _ in drawn]) if len(drawn) > 1 else None
