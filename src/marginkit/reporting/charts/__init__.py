"""Figures as SVG: one small pure function each."""

from __future__ import annotations

from markupsafe import Markup

from marginkit.reporting.blocks import Bars, Density, Figure, Forest, Histogram, Lines, Reliability
from marginkit.reporting.charts.bars import draw_bars, draw_histogram
from marginkit.reporting.charts.density import draw_density
from marginkit.reporting.charts.forest import draw_forest
from marginkit.reporting.charts.lines import draw_lines
from marginkit.reporting.charts.reliability import draw_reliability


def draw(figure: Figure, *, title: str, words: str, mark: str) -> tuple[Markup, Markup | None]:
    """A figure as an SVG element, and its legend where it needs one.

    Args:
        figure: what to draw.
        title: what it is, for those who do not see it.
        words: what it shows, for them too.
        mark: unique on the page; the ids inside start with it.

    Returns:
        The picture (a sentence where there is nothing to draw), and the legend as a list or None.

    Example:
        >>> picture, _ = draw(Bars(["a"], [1.0]), title="One bar", words="a is 1.", mark="f1")
        >>> picture[:4], "One bar" in picture
        (Markup('<svg'), True)
    """
    told = {"title": title, "words": words, "mark": mark}
    match figure:
        case Lines():
            return draw_lines(figure, **told)
        case Reliability():
            return draw_reliability(figure, **told)
        case Density():
            return draw_density(figure, **told)
        case Bars():
            return draw_bars(figure, **told)
        case Histogram():
            return draw_histogram(figure, **told)
        case Forest():
            return draw_forest(figure, **told)
