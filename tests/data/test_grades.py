"""Which evidence a pair carries, and the scale of grades."""

import math

import pytest

from marginkit.data.grades import (
    Evidence,
    just_noticeable_difference,
    pair_evidence,
    suggest_gamma,
)
from marginkit.data.sources import read_groups
from marginkit.errors import BadInput
from marginkit.records import Group, Pair, Response


def group(*responses, pairs=()):
    return Group("g", "p", tuple(responses), pairs=tuple(pairs))


GRADED = group(Response("x", grade=4.0), Response("y", grade=1.5))


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        (Pair(0, 1), Evidence(None, None, 2.5, False)),
        (Pair(1, 0), Evidence(None, None, -2.5, False)),
        (Pair(0, 1, strength=1.0), Evidence(None, None, 1.0, False)),
        (Pair(0, 1, prob=0.7), Evidence(0.7, None, 2.5, False)),
        (Pair(0, 1, prob=0.7, votes=(1.0, 2.0, 1.0)), Evidence(0.375, None, 2.5, False)),
        (Pair(0, 1, votes=(5.0, 0.0, 0.0)), Evidence(1.0, None, 2.5, False)),  # the raw share, no prior
        (Pair(0, 1, target_gap=-0.5, tie=True), Evidence(None, -0.5, 2.5, True)),
    ],
)
def test_evidence(pair, expected):
    assert pair_evidence(GRADED, pair) == expected


def test_target_gap_from_utilities():
    both = group(Response("x", utility=1.0), Response("y", utility=-0.5))
    assert pair_evidence(both, Pair(0, 1)) == Evidence(None, 1.5, None, False)
    assert pair_evidence(both, Pair(0, 1, target_gap=3.0)).target_gap == 3.0
    one = group(Response("x", utility=1.0), Response("y"))
    assert pair_evidence(one, Pair(0, 1)) == Evidence(None, None, None, False)


@pytest.mark.parametrize(
    ("columns", "prob"),
    [({"score_chosen": 2, "score_rejected": 2}, None), ({"margin": 0}, None), ({"tie": True}, None),
     ({"votes": [2, 2]}, 0.5), ({"p_chosen": 0.5}, 0.5)],
)  # fmt: skip
def test_a_probability_is_only_what_was_observed(columns, prob):
    groups, _ = read_groups([{"prompt": "p", "chosen": "x", "rejected": "y"} | columns])
    evidence = pair_evidence(groups[0], groups[0].pairs[0])
    assert evidence.tie
    assert evidence.prob == prob


def test_suggested_gamma_puts_the_median_gap_at_three_quarters():
    groups = [group(Response("x", grade=gap), Response("y", grade=0.0), pairs=[Pair(0, 1)]) for gap in (0, 1, -2, 5)]
    gamma = suggest_gamma(groups)
    assert 1 / (1 + math.exp(-gamma * 2)) == pytest.approx(0.75)  # the median of 1, 2, 5; the tie does not count
    assert suggest_gamma([group(Response("x"), Response("y"), pairs=[Pair(0, 1)])]) is None


def test_the_just_noticeable_difference_is_picked_three_times_in_four():
    for gamma in (0.3, 1.1, 2.2):
        assert 1 / (1 + math.exp(-gamma * just_noticeable_difference(gamma))) == pytest.approx(0.75)
    for gamma in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(BadInput, match="give a number > 0"):
            just_noticeable_difference(gamma)
