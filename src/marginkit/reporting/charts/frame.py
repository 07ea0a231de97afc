"""What all charts share: the plane they are drawn on, its axes, and how a line is told from the next one.

Charts are small (440 wide), so that they stay readable at a phone's width; colours are CSS variables, so that they
follow the page into the dark and onto paper; a second sign (dashes, the shape of a marker) goes with every colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from marginkit.reporting.elements import join, short, tag
from marginkit.reporting.numbers import tick

WIDTH, HEIGHT = 440.0, 270.0
LOOKS = 6
"""Ways of drawing a line before they repeat."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A plane with axes; `x` and `y` take values to places on it.

    Args:
        x_range: values at the left and right edge.
        y_range: values at the bottom and top.
        x_label: what x is.
        y_label: what y is.
        left: room for the labels of y.
        height: of the whole chart.
    """

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_label: str = ""
    y_label: str = ""
    left: float = 54.0
    height: float = HEIGHT

    @property
    def right(self) -> float:
        """The right edge of the plane."""
        return WIDTH - 12

    @property
    def top(self) -> float:
        """Its upper edge; the label of y stands above it."""
        return 26.0 if self.y_label else 10.0

    @property
    def bottom(self) -> float:
        """Its lower edge."""
        return self.height - (40.0 if self.x_label else 24.0)

    def x(self, value: float) -> float:
        """Where a value of x is."""
        low, high = self.x_range
        return self.left + _part(value, low, high) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Where a value of y is."""
        low, high = self.y_range
        return self.bottom - _part(value, low, high) * (self.bottom - self.top)

    def axes(self, x_ticks: Sequence[float], y_ticks: Sequence[float], *, grid: bool = True) -> Markup:
        """Ticks with their numbers, lines across, and the names of both axes."""
        parts = []
        for value in y_ticks:
            at = self.y(value)
            if grid:
                parts.append(tag("line", class_="grid", x1=self.left, x2=self.right, y1=at, y2=at))
            parts.append(tag("text", tick(value), class_="tick", x=self.left - 6, y=at + 4, text_anchor="end"))
        for value in x_ticks:
            at = self.x(value)
            parts.append(tag("line", class_="axis", x1=at, x2=at, y1=self.bottom, y2=self.bottom + 4))
            parts.append(tag("text", tick(value), class_="tick", x=at, y=self.bottom + 17, text_anchor="middle"))
        parts.append(tag("line", class_="axis", x1=self.left, x2=self.right, y1=self.bottom, y2=self.bottom))
        middle = (self.left + self.right) / 2
        if self.x_label:
            parts.append(tag("text", self.x_label, class_="name", x=middle, y=self.height - 4, text_anchor="middle"))
        if self.y_label:
            parts.append(tag("text", self.y_label, class_="name", x=4, y=13))
        return join(*parts)


def _part(value: float, low: float, high: float) -> float:
    """How far along an axis a value is; what is beyond all measure stands just outside of the plane."""
    return min(max((value - low) / (high - low), -0.04), 1.04)


def drawing(*parts: Markup, title: str, words: str, mark: str, height: float = HEIGHT) -> Markup:
    """The picture as one element, named for those who do not see it.

    Args:
        parts: what is drawn.
        title: what it is.
        words: what it shows.
        mark: unique on the page; the ids start with it.
        height: of the picture.
    """
    return tag(
        "svg",
        tag("title", title, id=f"{mark}-t"),
        tag("desc", words, id=f"{mark}-d"),
        *parts,
        viewBox=f"0 0 {short(WIDTH)} {short(height)}",
        role="img",
        aria_labelledby=f"{mark}-t {mark}-d",
    )


def route(places: Sequence[tuple[float, float]]) -> str:
    """The path through some places; a place that is no number breaks it."""
    steps, pen = [], "M"
    for x, y in places:
        if math.isnan(x) or math.isnan(y):
            pen = "M"
            continue
        steps.append(f"{pen}{short(x)} {short(y)}")
        pen = "L"
    return "".join(steps)


def _circle(x: float, y: float, size: float, look: str, words: Markup | None) -> Markup:
    return tag("circle", words, class_=look, cx=x, cy=y, r=size)


def _polygon(*turns: float) -> Callable[[float, float, float, str, Markup | None], Markup]:
    def draw(x: float, y: float, size: float, look: str, words: Markup | None) -> Markup:
        corners = [(x + 1.25 * size * math.cos(turn), y + 1.25 * size * math.sin(turn)) for turn in turns]
        return tag("polygon", words, class_=look, points=" ".join(f"{short(a)},{short(b)}" for a, b in corners))

    return draw


_up, _quarter = -math.pi / 2, math.pi / 2
_SHAPES = (
    _circle,
    _polygon(*(_up + _quarter * k + _quarter / 2 for k in range(4))),  # square
    _polygon(*(_up + 2 * math.pi * k / 3 for k in range(3))),  # triangle
    _polygon(*(_up + _quarter * k for k in range(4))),  # diamond
    _polygon(*(-_up + 2 * math.pi * k / 3 for k in range(3))),  # triangle on its tip
    _polygon(*(_up + 2 * math.pi * k / 5 for k in range(5))),  # pentagon
)


def marker(which: int, x: float, y: float, words: str = "", *, size: float = 3.5) -> Markup:
    """A point in the look of the line number `which`, with words that appear when it is pointed at."""
    hint = tag("title", words) if words else None
    return _SHAPES[which % LOOKS](x, y, size, f"m c{which % LOOKS}", hint)


def whisker(which: int, x: float, y_low: float, y_high: float, *, across: bool = False, y: float = 0.0) -> Markup:
    """An interval: upright at x, or from one x to another at height y if `across`; nothing where an end is unknown."""
    if math.isnan(y_low) or math.isnan(y_high):
        return Markup("")
    look = f"w c{which % LOOKS}"
    if across:
        return tag("line", class_=look, x1=y_low, x2=y_high, y1=y, y2=y)
    return tag("line", class_=look, x1=x, x2=x, y1=y_low, y2=y_high)


def legend(names: Sequence[tuple[str, bool]]) -> Markup | None:
    """The names of the lines, each with its look: (name, dashed); none where there is one line without a name."""
    if not any(name for name, _ in names):
        return None
    items = []
    for which, (name, dashed) in enumerate(names):
        look = f"l c{which % LOOKS}{' dashed' if dashed else ''}"
        sample = tag("path", class_=look, d="M1 6L27 6") + marker(which, 14, 6, size=3)
        picture = tag("svg", sample, viewBox="0 0 28 12", width=28, height=12, aria_hidden="true")
        items.append(tag("li", picture, name))
    return tag("ul", *items, class_="legend")
