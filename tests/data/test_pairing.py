"""Pairs from groups: which, in which order, and what is left out is counted."""

import pytest

from marginkit.data.pairing import make_pairs
from marginkit.data.signals import Signals
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.records import Comparison, Group, Pair, Response


def graded(*grades, id="g", **rest):
    return Group(id, "p", tuple(Response(f"r{at}", grade=grade) for at, grade in enumerate(grades)), **rest)


def made(groups, how, **options):
    return make_pairs(Groups.from_iterable(groups), how, **options)


def order(groups):
    return [(pair.chosen, pair.rejected, pair.tie) for group in groups for pair in group.pairs]


def test_given_pairs_are_kept_as_they_are():
    pair = Pair(1, 0, strength=2.0, weight=0.5)
    groups = made([graded(5, 1, pairs=(pair,))], "given")
    assert groups[0].pairs == (pair,)
    assert groups.dropped == {}


def test_given_without_pairs_takes_the_compared_ones_summed_over_raters_and_orders():
    votes = (
        Comparison(0, 1, 1, 0, 0, rater="a"),
        Comparison(1, 0, 2, 0, 1, rater="b"),
        Comparison(2, 1, 1, 1, 0),
    )
    groups = made([graded(None, None, None, comparisons=votes)], "given")
    assert groups[0].pairs == (Pair(1, 0, votes=(2.0, 1.0, 1.0)), Pair(1, 2, votes=(1.0, 1.0, 0.0), tie=True))


def test_best_worst():
    assert order(made([graded(2, 5, 1, 5, 1)], "best_worst")) == [(1, 2, False)]
    assert order(made([graded(None, 3, None, 3)], "best_worst")) == [(1, 3, True)]
    utilities = Group("u", "p", (Response("x", grade=1.0, utility=2.0), Response("y", grade=3.0, utility=0.0)))
    assert order(made([utilities], "best_worst")) == [(0, 1, False)]
    given = graded(1, 3, pairs=(Pair(1, 0, votes=(4, 1, 0)),))
    assert made([given], "best_worst")[0].pairs == given.pairs


def test_all_pairs_are_oriented_by_the_strongest_evidence():
    group = graded(1, 3, 3, None, comparisons=(Comparison(0, 1, 4, 1, 0),), pairs=(Pair(0, 2, strength=9.0),))
    groups = made([group], "all")
    assert groups[0].pairs == (
        Pair(0, 1, votes=(4.0, 1.0, 0.0)),  # votes against the grades
        Pair(0, 2, strength=9.0),  # given
        Pair(1, 2, tie=True),
    )
    assert groups.dropped == {"pairs without evidence": 3}
    utilities = Group("u", "p", (Response("x", grade=1.0, utility=2.0), Response("y", grade=3.0, utility=0.0)))
    assert order(made([utilities], "all")) == [(0, 1, False)]


def test_given_pairs_of_the_same_responses_are_all_kept():
    pairs = (Pair(0, 1, votes=(1, 0, 0)), Pair(1, 0, votes=(1, 0, 0)))
    assert made([graded(1, 2, pairs=pairs)], "all")[0].pairs == pairs


def test_groups_without_pairs_are_counted_by_reason():
    groups = [graded(1, id="a"), graded(None, None, id="b"), graded(2, 2, id="c"), graded(1, 2, id="d")]
    paired = made(groups, "all", ties="drop")
    assert paired.column("id") == ["d"]
    assert paired.dropped == {
        "one response only": 1,
        "no evidence to pair on": 1,
        "pairs without evidence": 1,
        "all ties": 1,
    }
    assert made([graded(1, 2)], "given").dropped == {"no evidence to pair on": 1}


def test_ties():
    groups = [graded(2, 2, 1)]
    assert order(made(groups, "all")) == [(0, 1, True), (0, 2, False), (1, 2, False)]
    assert order(made(groups, "all", ties="label")) == [(0, 1, False), (0, 2, False), (1, 2, False)]
    dropped = made(groups, "all", ties="drop")
    assert order(dropped) == [(0, 2, False), (1, 2, False)]
    assert dropped.dropped == {"pairs tied": 1}


def test_earlier_drops_are_carried_on():
    groups = Groups.from_iterable(
        [graded(1, 2), graded(1, id="h")], dropped={"duplicate row": 3, "one response only": 1}
    )
    assert make_pairs(groups, "all").dropped == {"duplicate row": 3, "one response only": 2}


def test_max_pairs_draws_by_group_and_seed():
    groups = [graded(*range(6), id=str(n)) for n in range(20)]
    every = {(pair.chosen, pair.rejected): at for at, pair in enumerate(made(groups, "all")[0].pairs)}
    few = made(groups, "all", max_pairs=4)
    drawn = [[every[pair.chosen, pair.rejected] for pair in group.pairs] for group in few]
    assert all(len(places) == 4 and places == sorted(places) for places in drawn)
    assert len({tuple(places) for places in drawn}) > 10  # another subset for another group
    assert few.dropped == {"pairs over max_pairs": 20 * 11}
    assert order(made(list(reversed(groups)), "all", max_pairs=4)) == order(reversed(list(few)))
    assert order(made(groups, "all", max_pairs=4, seed=1)) != order(few)


def test_ways_by_rank():
    groups = [graded(2, 5, 1, 4)]
    assert order(made(groups, "best_vs_others")) == [(1, 0, False), (1, 2, False), (1, 3, False)]
    assert order(made(groups, "adjacent")) == [(1, 3, False), (3, 0, False), (0, 2, False)]
    assert order(made([graded(3, 3, None, 1)], "adjacent")) == [(0, 1, True), (1, 3, False)]
    assert order(made([graded(3, 3, None, 1)], "best_vs_others", ties="drop")) == [(0, 3, False)]
    given = graded(1, 3, 2, pairs=(Pair(0, 1, votes=(4, 1, 0)),))  # what the data says of a pair stays
    assert made([given], "best_vs_others")[0].pairs == (*given.pairs, Pair(1, 2))


def test_best_against_a_random_other():
    groups = [graded(2, 5, 1, 4, id=str(n)) for n in range(300)]
    drawn = made(groups, "best_random")
    assert all(pair.chosen == 1 and pair.rejected != 1 for group in drawn for pair in group.pairs)
    counts = [sum(group.pairs[0].rejected == at for group in drawn) for at in (0, 2, 3)]
    assert all(70 < count < 130 for count in counts)
    assert order(made(list(reversed(groups)), "best_random")) == order(reversed(list(drawn)))
    assert order(made(groups, "best_random", seed=1)) != order(drawn)


@pytest.mark.parametrize("how", ["best_worst", "best_random", "best_vs_others", "adjacent"])
def test_one_value_is_no_ranking(how):
    assert made([graded(1, None), graded(1, id="h")], how).dropped == {
        "no evidence to pair on": 1,
        "one response only": 1,
    }


def test_a_model_ranks_in_place_of_the_data_and_its_gap_is_the_evidence():
    groups = Groups.from_iterable([graded(1, 2, 3, pairs=(Pair(2, 0, strength=4.0),))])
    signals = Signals.of(groups, rewards=[[[2.0, 0.5, 0.5]]])
    ways = {how: make_pairs(groups, how, signals=signals)[0].pairs for how in ("best_worst", "all", "adjacent")}
    assert ways["best_worst"] == (Pair(0, 1, target_gap=1.5),)
    assert ways["all"] == (Pair(0, 1, target_gap=1.5), Pair(0, 2, target_gap=1.5), Pair(1, 2, target_gap=0, tie=True))
    assert ways["adjacent"] == (Pair(0, 1, target_gap=1.5), Pair(1, 2, target_gap=0, tie=True))
    some = Signals.of(groups, rewards=[[[2.0, None, 0.5]]])
    assert make_pairs(groups, "all", signals=some).dropped == {"pairs without evidence": 2}
    assert make_pairs(groups, "given", signals=signals)[0].pairs == groups[0].pairs
    own = Signals.of(groups)
    assert make_pairs(groups, "all", signals=own)[0].pairs == make_pairs(groups, "all")[0].pairs
    with pytest.raises(BadInput, match="2 rewards are given"):
        make_pairs(groups, "all", signals=Signals.of(groups, rewards=[[[1, 2, 3]], [[1, 2, 3]]]))


def test_dcrm_keeps_unpaired_groups_where_losses_are_per_response():
    groups = [graded(1, id="a"), graded(1, 2, id="b")]
    kept = made(groups, "dcrm", options={"distance": "edit"}, keep_unpaired=True)
    assert [len(group.pairs) for group in kept] == [0, 1]
    assert made(groups, "dcrm", options={"distance": "edit"}).dropped == {"one response only": 1}


@pytest.mark.parametrize("options", [{"how": "bset"}, {"ties": "x"}, {"max_pairs": 0}])
def test_bad_options(options):
    with pytest.raises(BadInput, match=f"^{next(iter(options))}="):
        make_pairs(Groups.from_iterable([graded(1, 2)]), **options)


def test_options_are_those_of_dcrm():
    with pytest.raises(BadInput, match=r"^all: unknown option distance"):
        made([graded(1, 2)], "all", options={"distance": "edit"})
    with pytest.raises(BadInput, match="did you mean distance"):
        made([graded(1, 2)], "dcrm", options={"distnace": "edit"})
