"""Agreement of raters against its definition and a published example."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marginkit.data.summary import summarise
from marginkit.data.survey.raters import Agreement
from marginkit.groups import Groups
from marginkit.records import Group, Pair, Rating, Response

# Krippendorff, Computing Krippendorff's alpha-reliability (2011): four observers, twelve units, 0 = not coded
OBSERVERS = (
    (1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0),
    (1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3),
    (0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0),
    (1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0),
)


def slow_alpha(units: list[list[float]], distance: Callable[[float, float], float]) -> float:
    """1 - Do / De over all pairs of values, as the definition says."""
    units = [unit for unit in units if len(unit) > 1]
    values = [value for unit in units for value in unit]
    n = len(values)
    observed = sum(sum(distance(v, w) for v, w in itertools.permutations(unit, 2)) / (len(unit) - 1) for unit in units)
    expected = sum(distance(v, w) for v, w in itertools.permutations(values, 2)) / (n - 1)
    return 1 - observed / expected


def ordinal_distance(units: list[list[float]]) -> Callable[[float, float], float]:
    values = [value for unit in units if len(unit) > 1 for value in unit]

    def distance(v: float, w: float) -> float:
        low, high = min(v, w), max(v, w)
        between = sum(low <= value <= high for value in values)
        return float(between - (values.count(low) + values.count(high)) / 2) ** 2

    return distance


def agreement(units: list[list[float]]) -> Agreement:
    made = Agreement()
    for unit in units:
        made.add(unit)
    return made


def test_the_published_example() -> None:
    """Interval .849 and ordinal .815 in the paper's tables."""
    units = [[float(v) for v in unit if v] for unit in zip(*OBSERVERS, strict=True)]
    found = agreement(units)
    assert found.units == 11
    assert found.ratings == 40
    assert round(found.interval() or 0, 3) == 0.849
    assert round(found.ordinal() or 0, 3) == 0.815


@given(st.lists(st.lists(st.integers(1, 5).map(float), min_size=1, max_size=4), min_size=2, max_size=8))
def test_alpha_is_its_definition(units: list[list[float]]) -> None:
    """Streamed sums against all pairs of values."""
    found = agreement(units)
    paired = [value for unit in units if len(unit) > 1 for value in unit]
    if len(set(paired)) < 2:
        assert found.interval() is None
        return
    assert found.interval() == pytest.approx(slow_alpha(units, lambda v, w: (v - w) ** 2))
    if len(set(paired)) > 1:
        assert found.ordinal() == pytest.approx(slow_alpha(units, ordinal_distance(units)))
    variances = [np.var(unit, ddof=1) for unit in units if len(unit) > 1]
    assert found.noise() == pytest.approx(np.mean(variances))


def test_ratings_of_groups_are_told_apart_by_aspect() -> None:
    """Two raters on two aspects: one agrees fully, the other not at all."""

    def response(text: str, help_: tuple[float, float], style: tuple[float, float]) -> Response:
        marks = [("help", help_), ("style", style)]
        ratings = tuple(Rating(f"r{n}", v, name) for name, two in marks for n, v in enumerate(two))
        return Response(text, grade=help_[0], ratings=ratings)

    groups = Groups.from_iterable([Group("a", "?", (response("x", (1, 1), (1, 5)), response("y", (5, 5), (5, 1))))])
    survey = summarise(groups)
    assert survey.facts["ratings"]["help"]["alpha_interval"] == 1
    assert survey.facts["ratings"]["style"]["alpha_interval"] < 0
    assert [r.topic for r in survey.remarks if r.level == "warning"] == ["raters"]


def test_votes_by_hand() -> None:
    """[3, 1, 0] and [2, 2, 0] and [4, 0, 0]; a single vote says nothing of agreement.

    Majority (3/4 + 2/4 + 1) / 3 = .75; unanimous 1 of 3; two voters agree: (6 + 0)/12, (2 + 2)/12, 12/12 -> .6111.
    """
    votes = [(3.0, 1.0, 0.0), (2.0, 2.0, 0.0), (4.0, 0.0, 0.0), (1.0, 0.0, 0.0)]
    groups = Groups.from_iterable(
        Group(str(n), f"{n}?", (Response("x"), Response("y")), pairs=(Pair(0, 1, votes=v),))
        for n, v in enumerate(votes)
    )
    found = summarise(groups).facts["votes"]
    assert found["majority_share"] == pytest.approx(0.75)
    assert found["unanimous"] == pytest.approx(1 / 3)
    assert found["two_voters_agree"] == pytest.approx((6 / 12 + 4 / 12 + 1) / 3)
    assert found["votes_per_pair"] == pytest.approx(13 / 4)
