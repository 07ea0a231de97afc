"""Selection: how many, which of equals, what is counted, and what the facts say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marginkit.data.pairing import make_pairs
from marginkit.data.selection import METHODS, options_of, select, top_k
from marginkit.data.selection_facts import compare_selections
from marginkit.data.signals import Signals
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.records import Group, Pair, Response


def world(count=200, seed=0, k=4):
    """Graded groups paired best against worst, with log-probabilities of two policies."""
    rng = np.random.default_rng(seed)
    groups = Groups.from_iterable(
        Group(
            str(n),
            "?",
            tuple(Response("w " * int(rng.integers(1, 30)) + str(i), grade=float(rng.normal(0, 4))) for i in range(k)),
            source=f"s{n % 2}",
        )
        for n in range(count)
    )
    logp = (-rng.uniform(10, 90, (count, k))).tolist()
    ref = (np.array(logp) - rng.normal(0.5, 3, (count, k))).tolist()
    bare = (np.array(logp) * rng.uniform(0.95, 2, (count, k))).tolist()
    length = rng.integers(5, 40, (count, k)).astype(float).tolist()
    given = {"logp": logp, "ref_logp": ref, "bare_logp": bare, "length": length}
    return make_pairs(groups, "best_worst"), given


def signals_of(groups, given, how):
    if how == "ensemble":
        rng = np.random.default_rng(5)
        rewards = [rng.normal(size=(len(groups), 4)).tolist() for _ in range(3)]
        return Signals.of(groups, rewards=rewards, **given)
    if how == "confidence":
        rng = np.random.default_rng(5)
        return Signals.of(groups, rewards=[rng.normal(size=(len(groups), 4)).tolist()], **given)
    return Signals.of(groups, **given)


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, np.nan, np.inf]), max_size=20), st.integers(0, 25), st.booleans())
def test_top_k_against_a_plain_sort(scores, count, by_second):
    second = [float(at * 7 % 3) for at in range(len(scores))] if by_second else [0.0] * len(scores)
    order = sorted(
        (at for at, score in enumerate(scores) if np.isfinite(score)), key=lambda at: (-scores[at], -second[at], at)
    )
    kept = top_k(np.array(scores), count, np.array(second) if by_second else None)
    assert set(np.flatnonzero(kept).tolist()) == set(order[:count])


@pytest.mark.parametrize("how", METHODS)
def test_every_method_keeps_the_share_and_counts_the_rest(how):
    groups, numbers = world()
    signals = signals_of(groups, numbers, how)
    options = {"distance": "both"} if how == "dcrm" else {}
    made = select(groups, how, top=0.29, signals=signals, **options)
    again = select(groups, how, top=0.29, signals=signals, **options)
    assert list(made) == list(again)
    kept = sum(len(group.pairs) for group in made)
    scored = int(np.isfinite(made.scores).sum())
    assert kept == min(58, scored) == made.kept.sum()  # floor(0.29 * 200), which is 57.999... in floats
    left_out = sum(count for reason, count in made.dropped.items() if reason.startswith("pairs"))
    assert kept + left_out == 200
    assert len(made) + made.dropped["prompts without a selected pair"] == 200
    assert len(set(made.column("id"))) == len(made)
    assert np.isfinite(made.scores[made.kept]).all()
    assert made.facts["how"] == how
    assert made.facts["options"] == options_of(how) | options


@pytest.mark.parametrize("how", sorted(set(METHODS) - {"random"}))
def test_the_order_of_the_groups_does_not_matter(how):
    groups, numbers = world(120)
    signals = signals_of(groups, numbers, how)
    order = np.random.default_rng(1).permutation(120)
    turned = Groups.from_iterable(groups[int(at)] for at in order)
    flat = {name: [column[int(at)] for at in order] for name, column in numbers.items()}
    rewards = [signals.rewards[m].reshape(120, 4)[order].tolist() for m in range(len(signals.rewards))]
    other = Signals.of(turned, rewards=rewards if signals.external else (), **flat)
    first, second = select(groups, how, top=0.4, signals=signals), select(turned, how, top=0.4, signals=other)
    assert set(first.column("id")) == set(second.column("id"))


@pytest.mark.parametrize("how", ["explicit", "dcrm", "alignment", "dual_add", "dual_mul", "confidence"])
def test_a_constant_for_every_prompt_changes_nothing(how):
    groups, numbers = world(100)
    signals = signals_of(groups, numbers, how)
    rewards = signals.rewards.reshape(len(signals.rewards), 100, 4)
    shift = np.random.default_rng(2).integers(-8, 9, (1, 100, 1)).astype(float)
    one, other = (Signals.of(groups, rewards=r.tolist(), **numbers) for r in (rewards, rewards + shift))
    first, second = (select(groups, how, top=0.3, signals=s) for s in (one, other))
    np.testing.assert_allclose(first.scores, second.scores, rtol=1e-9, atol=1e-12)


def test_a_ratio_of_1_keeps_all_and_a_count_is_a_count():
    groups, numbers = world(50)
    signals = Signals.of(groups, **numbers)
    assert list(select(groups, "alignment", top=1.0, signals=signals)) == list(groups)
    assert len(select(groups, "random", top=1)) == 1
    assert len(select(groups, "random", top=50)) == 50
    assert set(select(groups, top=10, seed=1).column("id")) != set(select(groups, top=10, seed=2).column("id"))


def test_pairs_without_a_score_are_never_selected():
    responses = (Response("x", grade=1.0), Response("y"))
    rows = [Group("bare", "?", responses, pairs=(Pair(0, 1),)), world(3)[0][0]]
    made = select(Groups.from_iterable(rows), "explicit", top=1.0)
    assert made.column("id") == ["0"]
    assert made.dropped == {"pairs without a score": 1, "prompts without a selected pair": 1}
    assert made.facts["wanted"] == 2
    assert made.facts["kept"]["pairs"] == 1


def test_several_pairs_of_a_group_are_kept_or_not_one_by_one():
    group = Group("a", "?", tuple(Response(str(g), grade=float(g)) for g in (1, 2, 5)))
    groups = make_pairs(Groups.from_iterable([group]), "all")
    made = select(groups, "explicit", top=2)
    assert [(pair.chosen, pair.rejected) for pair in made[0].pairs] == [(2, 0), (2, 1)]
    assert made.dropped == {"pairs not selected": 1}


def test_earlier_drops_are_carried_on():
    groups, _ = world(10)
    groups.dropped = {"duplicate row": 3}
    assert select(groups, top=0.5).dropped["duplicate row"] == 3


@pytest.mark.parametrize(
    ("how", "options", "message"),
    [
        ("explict", {"top": 0.5}, "^how='explict'"),
        ("random", {}, "^how=random: say how much"),
        ("random", {"top": 0.0}, "^top="),
        ("random", {"top": 1.5}, "^top="),
        ("random", {"top": True}, "^top="),
        ("random", {"top": 21}, "^top=21 of 20"),
        ("random", {"top": 0.01}, "^top=0.01 of 20"),
        ("explicit", {"top": 0.5, "regoin": "mid"}, "did you mean region"),
        ("explicit", {"top": 0.5, "region": "left"}, "^region=left"),
        ("explicit", {"top": 0.5, "tau": "wide"}, "tau=wide: must be a number"),
        ("implicit", {"top": 0.5}, "how=implicit needs the log-prob"),
        ("alignment", {"top": 0.5}, "how=alignment needs the log-prob"),
        ("dual_mul", {"top": 0.5}, "how=dual_mul needs the log-prob"),
        ("ifd", {"top": 0.5}, "how=ifd needs the log-prob"),
        ("ensemble", {}, "how=ensemble needs the rewards"),
        ("confidence", {}, "how=confidence needs P"),
        ("dcrm", {"top": 0.5}, "p_D needs"),
    ],
)
def test_what_cannot_be_done_is_said(how, options, message):
    with pytest.raises(BadInput, match=message):
        select(world(20)[0], how, **options)


def test_no_pairs_and_signals_of_other_groups_are_refused():
    bare = Groups.from_iterable([Group("a", "?", (Response("x"),))])
    with pytest.raises(BadInput, match="no pairs to select from"):
        select(bare, top=1.0)
    with pytest.raises(BadInput, match="signals of 3 groups"):
        select(world(2)[0], top=1.0, signals=Signals.of(world(3)[0]))


def test_the_facts_show_whether_a_score_follows_the_length():
    rows = [
        Group(
            str(n),
            "?",
            (Response("x" * (n + 1), grade=float(n)), Response("y" * (n + 1), grade=-1.0)),
            pairs=(Pair(0, 1),),
        )
        for n in range(10)
    ]
    facts = select(Groups.from_iterable(rows), "explicit", top=0.5).facts
    assert facts["rank_correlation_with_length"] == pytest.approx(1)
    assert facts["rank_correlation_with_length_difference"] is None  # they are all the same
    assert facts["candidates"]["mean_chars"] == 5.5
    assert facts["kept"]["mean_chars"] == 8
    assert facts["kept"]["mean_explicit_margin"] == 8
    assert facts["score_quantiles"]["0.5"] == 5.5
    assert facts["score_quantiles_kept"]["0"] == 6


def test_what_the_data_says_of_its_pairs_is_the_margin_where_no_response_is_graded():
    both = (Response("x"), Response("y"))
    strengths = [Group(str(n), "?", both, pairs=(Pair(0, 1, strength=float(n)),)) for n in range(4)]
    made = select(Groups.from_iterable(strengths), "explicit", top=1)
    assert made.column("id") == ["3"]
    assert made.facts["method"]["margin"] == "explicit (grade gap)"
    votes = [Group(str(n), "?", both, pairs=(Pair(0, 1, votes=(n, 4 - n, 0)),)) for n in range(4)]
    made = select(Groups.from_iterable(votes), "explicit", top=1.0)
    assert made.scores.tolist() == pytest.approx([np.log(1 / 99), np.log(1 / 3), 0, np.log(3)])


def test_two_selections_side_by_side():
    groups, _ = world(10)
    first, second = select(groups, "explicit", top=6), select(groups, "explicit", top=4, region="bottom")
    found = compare_selections(first, second)
    assert (found["shared"], found["jaccard"]) == (0, 0.0)
    assert found["first"]["mean_grade_gap"] > found["second"]["mean_grade_gap"]
    whole = compare_selections(groups, first)
    assert (whole["shared"], whole["share_of_first"], whole["share_of_second"], whole["jaccard"]) == (6, 0.6, 1.0, 0.6)
    assert sum(whole["first"]["sources"].values()) == 10
    turned = Groups.from_iterable(
        Group(g.id, g.prompt, g.responses, pairs=(Pair(g.pairs[0].rejected, g.pairs[0].chosen),)) for g in groups
    )
    found = compare_selections(groups, turned)
    assert (found["shared"], found["turned"]) == (0, 10)


def test_no_margin_at_all_has_no_outliers():
    bare = (Response("x"), Response("y"))
    made = select(Groups.from_iterable([Group("a", "?", bare, pairs=(Pair(0, 1),))]), "explicit", top=1, outliers=0.1)
    assert made.dropped == {"pairs without a score": 1, "prompts without a selected pair": 1}


def test_the_scale_of_dcrm_is_in_the_unit_of_its_margin():
    """Grades of a few responses say nothing of the spread of gaps in logits."""

    def dcrm_of(unit):
        some = [Group("g", "?", (Response("x", grade=unit), Response("y", grade=0.0)), pairs=())]
        both = (Response("a b"), Response("c"))
        rest = [Group(str(n), "?", both, pairs=(Pair(0, 1, target_gap=n + 1.0),)) for n in range(4)]
        made = Groups.from_iterable(some + rest)
        return select(made, "dcrm", top=1.0, distance="edit", reward_scale="std").facts["method"]["reward_scale"]

    assert dcrm_of(1.0) == dcrm_of(100.0) == pytest.approx(np.sqrt(30 / 4))
