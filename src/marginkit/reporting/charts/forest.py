"""Estimates one below the other, with their intervals."""

from __future__ import annotations

import math

from markupsafe import Markup

from marginkit.reporting.blocks import Forest
from marginkit.reporting.charts.frame import Frame, drawing, marker, whisker
from marginkit.reporting.elements import tag
from marginkit.reporting.numbers import interval, point, spread, ticks

_ROW = 26.0
_LONGEST_NAME = 26


def draw_forest(figure: Forest, *, title: str, words: str, mark: str) -> tuple[Markup, None]:
    """A point and its interval a row; an interval that leaves 0 out is drawn full, one that holds it faint."""
    rows = [(name, found) for name, found in figure.rows if math.isfinite(found.value)]
    if not rows:
        return tag("p", "There is nothing to compare.", class_="empty"), None
    ends = [end for _, found in rows for end in (found.value, found.low, found.high)]
    x_range = spread(ends, zero=figure.zero)
    height = _ROW * len(rows) + 54
    longest = max(len(name) for name, _ in rows)
    left = 16 + 7 * min(longest, _LONGEST_NAME)
    frame = Frame(x_range, (0, len(rows)), figure.unit or " ", left=left, height=height)
    parts = [frame.axes(ticks(*x_range, 4), [])]
    if figure.zero:
        parts.append(tag("line", class_="zero", x1=frame.x(0), x2=frame.x(0), y1=frame.top, y2=frame.bottom))
    for at, (name, found) in enumerate(rows):
        y = frame.y(len(rows) - at - 0.5)
        short = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
        told = f"{name}: {point(found)} {interval(found)}".strip()
        parts.append(tag("text", tag("title", told), short, class_="tick", x=left - 8, y=y + 4, text_anchor="end"))
        clear = not figure.zero or math.isnan(found.low) or not found.low <= 0 <= found.high
        parts.append(whisker(0 if clear else 5, 0, frame.x(found.low), frame.x(found.high), across=True, y=y))
        parts.append(marker(0 if clear else 5, frame.x(found.value), y, told, size=4))
    return drawing(*parts, title=title, words=words, mark=mark, height=height), None
