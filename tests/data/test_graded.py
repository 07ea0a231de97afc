"""Grades written into groups are what training uses; what had to go is counted; kept + dropped = read."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marginkit.data.graded import Grades, apply_grades, paired_for_grading, pairs_inside, response_starts
from marginkit.data.grades import pair_evidence
from marginkit.data.pairing import make_pairs
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.records import Comparison, Group, Pair, Response


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def training_prob(group, pair):
    """What the soft label of a pair is: the precedence of training, said once more by hand."""
    found = pair_evidence(group, pair)
    if found.prob is not None:
        return found.prob
    if found.target_gap is not None:
        return sigmoid(found.target_gap)
    return 0.5 if found.tie else None


EVERYTHING = Pair(0, 1, strength=2.0, votes=(4.0, 1.0, 0.0), prob=0.9, target_gap=5.0, weight=0.5)


@pytest.mark.parametrize(("kind", "values"), [("utility", [1.5, 0.5]), ("target_gap", [1.0]), ("prob", [sigmoid(1.0)])])
def test_a_grade_is_what_training_uses_whatever_was_there(kind, values):
    """Votes before prob before target gap before utilities: each would speak before a grade, were it still there."""
    responses = (Response("x", grade=4.0, utility=9.0), Response("y", grade=2.0, utility=-9.0))
    asked = (Comparison(0, 1, 5, 0), Comparison(1, 0, 5, 0, rater="r"))
    groups = Groups.from_iterable([Group("a", "?", responses, comparisons=asked, pairs=(EVERYTHING,))])
    made, superseded = apply_grades(Grades(groups, kind, np.array(values)))
    for how in ("given", "all", "best_worst"):
        [group] = list(make_pairs(made, how))
        [pair] = group.pairs
        if how == "best_worst" and kind != "utility":
            pass  # the ranking is by utility then; the evidence of the pair is still the grade
        assert training_prob(group, pair) == pytest.approx(sigmoid(1.0))
        assert (pair.weight, pair.strength) == (0.5, 2.0)
        assert [response.grade for response in group.responses] == [4.0, 2.0]
    expected = {"votes": 1, "prob": 1, "target_gap": 1, "comparisons": 2}
    assert superseded == expected | ({"utility": 2} if kind == "utility" else {})


def test_comparisons_that_were_not_graded_stay():
    asked = (Comparison(0, 1, 5, 0), Comparison(1, 2, 3, 4))
    groups = Groups.from_iterable([Group("a", "?", tuple(map(Response, "xyz")), comparisons=asked)])
    made, superseded = apply_grades(Grades(groups, "utility", np.array([1.0, 0.0, np.nan]), {"no grade": 1}))
    assert made[0].comparisons == (Comparison(1, 2, 3, 4),)
    assert superseded == {"comparisons": 1}
    paired = paired_for_grading(groups)
    made, superseded = apply_grades(Grades(paired, "target_gap", np.array([np.nan, 1.0]), {"no votes": 1}))
    assert made[0].comparisons == (Comparison(0, 1, 5, 0),)
    assert superseded == {"votes": 1, "comparisons": 1}


@pytest.mark.parametrize(
    ("policy", "pair"),
    [
        ("keep", Pair(0, 1, strength=2.0, target_gap=-0.7)),
        ("drop", None),
        ("trust_label", Pair(0, 1, strength=2.0, prob=1.0)),
        ("trust_grade", Pair(1, 0, target_gap=0.7)),
    ],
)
def test_a_grade_against_the_label(policy, pair):
    agrees = Pair(1, 2)
    group = Group("a", "?", tuple(map(Response, "xyz")), pairs=(Pair(0, 1, strength=2.0), agrees))
    grades = Grades(Groups.from_iterable([group]), "target_gap", np.array([-0.7, 0.2]))
    made, superseded = apply_grades(grades, disagreement=policy)
    assert superseded == ({"strength": 1} if policy == "trust_grade" else {})
    assert made[0].pairs == tuple(p for p in (pair, Pair(1, 2, target_gap=0.2)) if p is not None)
    assert made.dropped == ({"pairs whose grade disagrees with the label": 1} if pair is None else {})


def test_a_graded_gap_of_zero_is_a_tie_and_a_tie_can_be_broken():
    group = Group("a", "?", tuple(map(Response, "xy")), pairs=(Pair(0, 1), Pair(0, 1, tie=True)))
    made, _ = apply_grades(Grades(Groups.from_iterable([group]), "target_gap", np.array([0.0, 0.4])))
    assert [pair.tie for pair in made[0].pairs] == [True, False]


def test_what_could_not_be_graded_is_kept_or_dropped_and_counted():
    voted = Pair(0, 1, votes=(1.0, 0.0, 0.0))
    groups = Groups.from_iterable(
        [
            Group("a", "?", tuple(map(Response, "xy")), pairs=(voted, voted)),
            Group("b", "?", tuple(map(Response, "xy")), pairs=(voted,)),
        ],
        {"read before": 3},
    )
    grades = Grades(groups, "target_gap", np.array([1.0, np.nan, np.nan]), {"no reason": 2})
    kept, _ = apply_grades(grades)
    assert [pair for group in kept for pair in group.pairs] == [Pair(0, 1, target_gap=1.0), voted, voted]
    assert kept.dropped == {"read before": 3}
    left, _ = apply_grades(grades, ungraded="drop")
    assert [pair for group in left for pair in group.pairs] == [Pair(0, 1, target_gap=1.0)]
    assert left.dropped == {"read before": 3, "pairs not graded": 1, "not graded": 1}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=8),
    st.sampled_from(["utility", "target_gap", "prob"]),
    st.sampled_from(["keep", "drop", "trust_label", "trust_grade"]),
    st.sampled_from(["keep", "drop"]),
    st.integers(0, 10_000),
)
def test_groups_and_pairs_are_kept_or_counted(sizes, kind, disagreement, ungraded, seed):
    rng = np.random.default_rng(seed)
    groups = Groups.from_iterable(
        Group(
            str(at),
            "?",
            tuple(Response(f"{at} {k}") for k in range(size)),
            pairs=tuple(Pair(i, i + 1) for i in range(size - 1) if rng.random() < 0.8),
        )
        for at, size in enumerate(sizes)
    )
    count = sum(sizes) if kind == "utility" else sum(len(group.pairs) for group in groups)
    values = rng.random(count) if kind == "prob" else rng.normal(size=count)
    values[rng.random(count) < 0.3] = np.nan
    missing = int(np.isnan(values).sum())
    made, _ = apply_grades(Grades(groups, kind, values, {"why": missing} if missing else {}), disagreement=disagreement, ungraded=ungraded)  # fmt: skip  # noqa: E501
    left_out = made.dropped.get("not graded", 0) + made.dropped.get("no pair left", 0)
    assert len(made) + left_out == len(groups)
    if ungraded == "keep" and disagreement != "drop":
        assert not left_out
        assert sum(len(g.pairs) for g in made) == sum(len(g.pairs) for g in groups)
    for group in made:
        for pair in group.pairs:
            target = training_prob(group, pair)
            if ungraded == "drop":
                assert target is not None
            if target is not None and disagreement != "keep":
                assert target >= 0.5


def test_pairs_inside_are_every_two_of_a_prompt():
    groups = Groups.from_iterable(
        Group(str(n), "?", tuple(Response(f"{k}") for k in range(size))) for n, size in enumerate([3, 1, 4, 3])
    )
    starts = response_starts(groups)
    left, right = pairs_inside(starts)
    by_hand = [
        (s + i, s + j) for s, n in zip(starts, [3, 1, 4, 3], strict=False) for i in range(n) for j in range(i + 1, n)
    ]
    assert list(zip(left.tolist(), right.tolist(), strict=True)) == by_hand


def test_infinite_grades_and_unknown_policies_are_refused():
    groups = Groups.from_iterable([Group("a", "?", (Response("x"),))])
    with pytest.raises(BadInput, match="infinite: set a prior"):
        Grades(groups, "utility", np.array([np.inf]))
    with pytest.raises(ValueError, match="1 values are NaN, but the reasons count 0"):
        Grades(groups, "utility", np.array([np.nan]))
    grades = Grades(groups, "utility", np.array([1.0]))
    with pytest.raises(BadInput, match="keep, drop, trust_label, trust_grade"):
        apply_grades(grades, disagreement="swap")
    with pytest.raises(BadInput, match="keep or drop"):
        apply_grades(grades, ungraded="guess")
