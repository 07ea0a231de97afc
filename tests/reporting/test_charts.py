"""Every figure is well-formed SVG whatever its numbers are, stays in its frame, and has its numbers as a table."""

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marginkit.records import Estimate
from marginkit.reporting.blocks import Bars, Bin, Density, Figure, Forest, Histogram, Lines, Reliability, Series
from marginkit.reporting.charts import draw
from marginkit.reporting.charts.frame import WIDTH
from marginkit.reporting.charts.lines import thinned
from marginkit.reporting.figures import table_of
from marginkit.reporting.numbers import spread, ticks

NAN, INF = math.nan, math.inf
NUMBER = st.floats() | st.sampled_from([0.0, 1.0, -1.0, 1e308, -1e308, 5e-324, NAN, INF, -INF])
NAME = st.text(st.characters(), max_size=12)


def svg_of(figure: Figure) -> ET.Element | None:
    """The picture as an XML parser reads it; None where it is a sentence."""
    picture, legend = draw(figure, title="a title", words="some words", mark="m")
    if legend is not None:
        ET.fromstring(legend)
    root = ET.fromstring(picture)
    assert root.tag in ("svg", "p")
    return root if root.tag == "svg" else None


def assert_drawn(figure: Figure) -> None:
    """Well-formed, no coordinate that is no number, nothing far outside of its frame."""
    root = svg_of(figure)
    table_of(figure)
    if root is None:
        return
    assert root.attrib["aria-labelledby"] == "m-t m-d"
    height = float(root.attrib["viewBox"].split()[3])
    for element in root.iter():
        for name in ("x", "x1", "x2", "cx", "width"):
            if name in element.attrib:
                assert -50 <= float(element.attrib[name]) <= WIDTH + 50, (element.tag, element.attrib)
        for name in ("y", "y1", "y2", "cy", "height"):
            if name in element.attrib:
                assert -50 <= float(element.attrib[name]) <= height + 50, (element.tag, element.attrib)
        for name in ("d", "points"):
            assert not re.search("nan|inf|None", element.attrib.get(name, ""))
        assert element.tag != "rect" or float(element.attrib["width"]) >= 0 <= float(element.attrib["height"])


def estimate(values: Sequence[float]) -> Estimate:
    value, low, high = values
    return Estimate(value, low, high, 10, 5)


MAYBE = st.floats(0, 1) | st.just(NAN)
THREE = st.tuples(NUMBER, NUMBER, NUMBER)


@given(points=st.lists(st.tuples(NUMBER, NUMBER), max_size=8), zero=st.booleans(), name=NAME)
def test_lines(points: list[tuple[float, float]], zero: bool, name: str) -> None:
    """Any curves."""
    series = [Series(name, points), Series("b", points[:1], dashed=True)]
    assert_drawn(Lines(series, name, name, zero))


@given(rows=st.lists(st.tuples(NAME, THREE), max_size=6), zero=st.booleans())
def test_forest(rows: list[tuple[str, tuple[float, float, float]]], zero: bool) -> None:
    """Any estimates."""
    assert_drawn(Forest([(name, estimate(own)) for name, own in rows], "unit", zero))


@given(rows=st.lists(st.tuples(NAME, THREE), max_size=30), reference=NUMBER, ends=st.booleans())
def test_bars(rows: list[tuple[str, tuple[float, float, float]]], reference: float, ends: bool) -> None:
    """Any heights."""
    names, values = [name for name, _ in rows], [own for _, own in rows]
    low, high = ([own[1] for own in values], [own[2] for own in values]) if ends else (None, None)
    assert_drawn(Bars(names, [own[0] for own in values], low, high, "height", (reference, "a line")))


@given(
    bins=st.lists(
        st.tuples(st.floats(0.5, 1), st.floats(0, 1), MAYBE, MAYBE, st.integers(1, 10**12)),
        max_size=10,
    )
)
def test_reliability(bins: list[tuple[float, float, float, float, int]]) -> None:
    """Any bins."""
    assert_drawn(Reliability([Bin(*one) for one in bins]))


EDGES = st.lists(st.floats(-1e300, 1e300), min_size=2, max_size=9, unique=True).map(sorted)


@given(edges=EDGES, data=st.data())
def test_histogram_and_density(edges: list[float], data: st.DataObject) -> None:
    """Any edges that ascend, any counts."""
    n = len(edges) - 1
    counts = data.draw(st.lists(st.integers(0, 10**12), min_size=n, max_size=n))
    assert_drawn(Histogram(edges, counts, "x"))
    assert_drawn(Density(edges, edges, [counts] * n, "x", "y"))


@pytest.mark.parametrize(
    "figure",
    [
        Lines([], "x", "y"),
        Lines([Series("", [])], "x", "y"),
        Lines([Series("", [(1, NAN)])], "x", "y"),
        Reliability([]),
        Density([0, 1], [0, 1], [[0]], "x", "y"),
        Bars([], []),
        Forest([]),
        Histogram([0, 1], [], "x"),
    ],
)
def test_nothing_to_draw_is_a_sentence(figure: Figure) -> None:
    """Not an empty frame."""
    assert svg_of(figure) is None


def test_where_things_are() -> None:
    """A bar twice as high is twice as high; an interval around zero is drawn differently from one beside it."""
    root = svg_of(Bars(["a", "b"], [1.0, 2.0]))
    assert root is not None
    low, high = (float(one.attrib["height"]) for one in root.iter("rect"))
    assert high == pytest.approx(2 * low, abs=0.02)
    root = svg_of(Forest([("a", Estimate(1, 0.5, 1.5, 9, 9)), ("b", Estimate(0.1, -0.5, 0.7, 9, 9))]))
    assert root is not None
    looks = [one.attrib["class"] for one in root.iter("line") if one.attrib["class"].startswith("w ")]
    assert looks == ["w c0", "w c5"]
    root = svg_of(Lines([Series("", [(0, 0.0), (1, NAN), (2, 1.0), (3, 2.0)])], "x", "y"))
    assert root is not None
    path = next(one.attrib["d"] for one in root.iter("path"))
    assert path.count("M") == 2


def test_the_numbers_behind_a_figure() -> None:
    """Each figure with few numbers has them as a table, worked out by hand."""
    table = table_of(Histogram([0, 1, 2], [3, 4], "x"))
    assert table is not None
    assert list(table.rows) == [("0", "1", "3"), ("1", "2", "4")]
    table = table_of(Reliability([Bin(0.75, 0.5, 0.25, 0.75, 4)]))
    assert table is not None
    assert list(table.rows) == [("0.75", "0.5", "[0.250, 0.750]", "4")]
    table = table_of(Bars(["a"], [1.0], [0.5], [1.5]))
    assert table is not None
    assert list(table.rows) == [("a", "1", "[0.5, 1.5]")]


@given(low=st.floats(-1e12, 1e12), width=st.floats(1e-3, 1e12))
def test_ticks_are_few_round_and_inside(low: float, width: float) -> None:
    """At most eight, ascending, within the axis but for rounding."""
    found = ticks(low, low + width)
    assert len(found) <= 8
    assert found == sorted(found)
    room = 1e-6 * max(abs(low), abs(low + width), 1e-9)
    assert all(low - room <= value <= low + width + room for value in found)


def test_scales() -> None:
    """By hand."""
    assert spread([]) == (0.0, 1.0)
    assert spread([3.0]) == pytest.approx((2.7, 3.3))
    assert spread([1.0, 2.0], zero=True) == (0.0, 2.1)
    assert len(thinned(Series("a", [(float(at), 1.0) for at in range(10_001)])).points) <= 400
