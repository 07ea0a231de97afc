"""The methods of selection against the sheet's numbers, slow references and limiting cases."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marginkit.data.dual_margin import dual_mul, margin_prob, upper_bound
from marginkit.data.ensemble import in_own_units, strength
from marginkit.data.grades import pair_evidence
from marginkit.data.ifd import ifd
from marginkit.data.pairing import make_pairs
from marginkit.data.potential import alignment_potential
from marginkit.data.rso import rejection_sample, thin_responses
from marginkit.data.selection import select
from marginkit.data.signals import Signals
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.records import Group, Pair, Response


def pairs(count=60, k=2):
    """Pairs (0, 1), without grades."""
    responses = tuple(Response(f"r{i}") for i in range(k))
    return Groups.from_iterable(Group(str(n), "?", responses, pairs=(Pair(0, 1),)) for n in range(count))


def chosen_minus_rejected(values):
    """Nested signals whose difference within each pair is the value."""
    return [[float(value), 0.0] for value in values]


ONES = [[1.0, 1.0]] * 60


def ids(groups):
    return set(groups.column("id"))


# -- M_AP


@given(st.floats(0.1, 30), st.floats(-9, 9), st.floats(0.1, 30), st.floats(-9, 9))
def test_potential_does_not_change_under_affine_maps(a, b, c, d):
    rng = np.random.default_rng(0)
    ex, im = np.abs(rng.normal(size=(2, 30)))
    np.testing.assert_allclose(
        alignment_potential(a * ex + b, c * im + d, 2.5), alignment_potential(ex, im, 2.5), atol=1e-8
    )


def test_potential_in_its_limits():
    rng = np.random.default_rng(1)
    ex, im = np.abs(rng.normal(size=(2, 60)))
    groups = pairs()
    signals = Signals.of(groups, rewards=[chosen_minus_rejected(ex)], logp=chosen_minus_rejected(im), length=ONES)

    def top(how, **options):
        return ids(select(groups, how, top=0.4, signals=signals, **options))

    assert top("alignment", weight=0.0) == top("explicit")
    assert top("alignment", weight=1e9) == top("implicit", region="bottom", signed=False)
    assert top("alignment") != top("explicit")
    assert len(top("alignment")) == 24


def test_the_shares_of_the_sheet():
    # independent half-normal margins: top 40% by M_AP has 74% of the explicit top 40%, 66% of the implicit bottom 40%
    rng = np.random.default_rng(0)
    ex, im = np.abs(rng.normal(size=(2, 50_000)))
    k = 20_000
    best = set(np.argsort(-alignment_potential(ex, im))[:k].tolist())
    assert len(best & set(np.argsort(-ex)[:k].tolist())) / k == pytest.approx(0.74, abs=0.015)
    assert len(best & set(np.argsort(im)[:k].tolist())) / k == pytest.approx(0.66, abs=0.015)


def test_potential_by_hand():
    # z of (1, 2, 3): -1.2247, 0, 1.2247; of (0, 3, 0): -0.7071, 1.4142, -0.7071
    score = alignment_potential(np.array([1.0, 2.0, 3.0]), np.array([0.0, 3.0, 0.0]), 2.0)
    assert score == pytest.approx([-1.224745 + 1.414214, -2.828427, 1.224745 + 1.414214], abs=1e-6)


@pytest.mark.parametrize(
    ("ex", "im", "message"),
    [
        ([1.0, 1.0, 1.0], [0.0, 1.0, 2.0], "explicit margin is the same for all 3"),
        ([1.0, 2.0, 3.0], [0.1, 0.1, 0.1], "implicit margin is the same for all 3"),
        ([1.0, math.nan, 3.0], [0.0, 1.0, 2.0], "explicit margin of 1 pairs is not a finite"),
    ],
)
def test_potential_refuses_what_ranks_nothing(ex, im, message):
    with pytest.raises(BadInput, match=message):
        alignment_potential(np.array(ex), np.array(im))


def test_the_released_margin_is_of_best_and_worst():
    groups = pairs(4, k=3)
    rewards = [[[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [3.0, 0.0, 2.0], [4.0, 2.0, 3.0]]]
    numbers = {"logp": [[-1.0, -n, -1.0] for n in range(1, 5)], "length": [[1.0] * 3] * 4}
    assert len(select(groups, "alignment", top=2, signals=Signals.of(groups, rewards=rewards, **numbers))) == 2
    rewards[0][1] = [3.0, 1.0, 9.0]
    signals = Signals.of(groups, rewards=rewards, **numbers)
    with pytest.raises(BadInput, match="1 of 4 pairs are not the best and the worst"):
        select(groups, "alignment", top=2, signals=signals)
    assert len(select(groups, "alignment", top=2, signals=signals, explicit="pair")) == 2


def test_signed_potential_prefers_pairs_that_the_policy_has_the_wrong_way_round():
    groups = pairs(3)
    rewards = [chosen_minus_rejected([1.0, 1.0, 2.0])]
    signals = Signals.of(groups, rewards=rewards, logp=chosen_minus_rejected([2, -2, 0]), length=[[1.0, 1.0]] * 3)
    plain = select(groups, "alignment", top=1.0, signals=signals).scores
    signed = select(groups, "alignment", top=1.0, signals=signals, signed=True).scores
    assert plain[0] == plain[1]
    assert signed[1] > signed[0]


# -- dual margins


def by_scan(margins):
    """The rule read word by word, on every margin."""
    top, best = max(margins), max(margins)
    for low in sorted(set(margins), reverse=True):
        inside = sum(margin >= low for margin in margins)
        if not (inside < 30 or inside < top - low):
            break
        best = low
    return best


@given(st.lists(st.integers(-5, 90), min_size=30, max_size=80))
def test_the_upper_bound_is_that_of_the_scan(margins):
    assert upper_bound(np.array(margins, dtype=float)) == by_scan([float(m) for m in margins])


def test_the_upper_bounds_of_the_sheet():
    margins = np.random.default_rng(0).normal(1, 3, 60_000)
    bound = upper_bound(margins)
    assert bound == pytest.approx(11.1, abs=0.35)  # M2 = 11.1 with 28 above
    assert 27 <= (margins >= bound).sum() <= 29
    heavy = np.random.default_rng(0).standard_t(3, 60_000) * 3 + 1
    bound = upper_bound(heavy)  # by the second condition, as in the sheet: M2 = 25, 112 above, of max 137
    assert 20 < bound < 32
    assert 30 < (heavy >= bound).sum() < heavy.max() - bound
    with pytest.raises(BadInput, match="30 margins or more"):
        upper_bound(margins[:29])


@given(st.floats(0.001, 0.999), st.floats(0.001, 0.999))
def test_dual_mul_adds_logits(p, q):
    found = float(dual_mul(np.array(p), np.array(q)))
    assert math.log(found / (1 - found)) == pytest.approx(math.log(p / (1 - p)) + math.log(q / (1 - q)), abs=1e-6)
    assert float(dual_mul(np.array(p), np.array(0.5))) == pytest.approx(p)
    assert float(dual_mul(np.array(q), np.array(p))) == found


def test_dual_mul_at_its_ends():
    p, q = np.array([0.0, 1.0, 0.0, 1.0, 0.0, np.nan]), np.array([1.0, 0.0, 0.7, 0.7, 0.0, 0.5])
    np.testing.assert_equal(dual_mul(p, q), [0, 0, 0, 1, 0, np.nan])


def test_margin_prob_is_monotone_inside_and_flat_outside():
    prob = margin_prob(np.array([-9.0, -2.0, 0.0, 4.0, 10.0, 99.0]), -2.0, 10.0)
    assert prob.tolist() == pytest.approx([0, 0, 2 / 12, 0.5, 1, 1])  # P(0) = 2 / (M2 + 2)
    with pytest.raises(BadInput, match="must be above M1"):
        margin_prob(np.zeros(2), -2.0, -2.0)


def dual(m_ex, m_im):
    groups = pairs(len(m_ex))
    logp = [[m - 30.0, -20.0] for m in m_im]
    ref = [[-30.0, -20.0]] * len(m_im)
    return groups, Signals.of(groups, rewards=[chosen_minus_rejected(m_ex)], logp=logp, ref_logp=ref)


def test_dual_margins_end_to_end():
    m_ex, m_im = [3.0, -5.0, 1.0, 9.0], [1.0, 9.0, 1.0, -3.0]
    groups, signals = dual(m_ex, m_im)
    add = select(groups, "dual_add", top=1.0, signals=signals)
    assert add.scores.tolist() == [4, 4, 2, 6]
    mul = select(groups, "dual_mul", top=1.0, signals=signals, high_ex=4.0, high_im=4.0)
    p, q = 5 / 6, 3 / 6
    assert mul.scores.tolist() == pytest.approx([p * q / (p * q + (1 - p) * (1 - q)), 0, 0.5, 0])
    two = select(groups, "dual_mul", top=3, signals=signals, high_ex=4.0, high_im=4.0)
    assert ids(two) == {"0", "2", "3"}  # of the two with score 0 the one of the larger sum
    assert mul.facts["method"]["share_at_0"] == 0.5
    with pytest.raises(BadInput, match="M2 needs 30"):
        select(groups, "dual_mul", top=1.0, signals=signals)


def test_swapping_the_two_sides():
    rng = np.random.default_rng(0)
    m_ex, m_im = rng.normal(0, 2, (2, 40))
    for how, options in (("dual_add", {}), ("dual_mul", dict(low_ex=-3.0, high_ex=3.0, low_im=-3.0, high_im=3.0))):
        one, other = (
            select(groups, how, top=1.0, signals=signals, **options).scores
            for groups, signals in (dual(m_ex, m_im), dual(-m_ex, -m_im))
        )
        np.testing.assert_allclose(other, -one if how == "dual_add" else 1 - one, atol=1e-9)


def test_a_policy_that_is_its_own_reference_ranks_nothing():
    groups, signals = dual([1.0, 2.0], [0.0, 0.0])
    for how in ("dual_add", "implicit"):
        options = {"form": "reference"} if how == "implicit" else {}
        with pytest.raises(BadInput, match="every implicit margin is 0"):
            select(groups, how, top=1.0, signals=signals, **options)


# -- top, bottom, middle, threshold


def test_regions():
    groups = pairs()
    signals = Signals.of(groups, rewards=[chosen_minus_rejected(range(-30, 30))])

    def kept(**options):
        return sorted(int(name) - 30 for name in ids(select(groups, "explicit", signals=signals, **options)))

    assert kept(top=3) == [27, 28, 29]
    assert kept(top=3, region="bottom") == [-30, -29, -28]
    assert kept(top=3, signed=False) == [-30, -29, 29]
    assert kept(top=2, signed=False, region="bottom") == [-1, 0]
    assert kept(top=0.9, region="mid", tau=2.0) == [-2, -1, 0, 1, 2]
    assert kept(top=2, region="mid", tau=2.0) != kept(top=2, region="mid", tau=2.0, seed=3)
    assert kept(top=3, outliers=0.05) == [24, 25, 26]
    middle = select(groups, "explicit", top=0.9, region="mid", tau=2.0, signals=signals)
    assert middle.dropped == {"pairs outside the middle": 55, "prompts without a selected pair": 55}


def test_implicit_margins_have_two_forms():
    groups = pairs(2)
    signals = Signals.of(
        groups, logp=[[-10.0, -12.0], [-8.0, -9.0]], ref_logp=[[-11.0, -12.0], [-5.0, -9.0]], length=[[5, 4], [2, 3]]
    )
    per_token = select(groups, "implicit", top=1.0, signals=signals)
    assert per_token.scores.tolist() == pytest.approx([-2 + 3, -4 + 3])
    reference = select(groups, "implicit", top=1.0, signals=signals, form="reference")
    assert reference.scores.tolist() == pytest.approx([1, -3])


def test_threshold():
    groups = pairs(4)
    signals = Signals.of(groups, rewards=[chosen_minus_rejected([0.5, 1.0, 2.0, -3.0])])
    made = select(groups, "threshold", min_gap=0.5, signals=signals)
    assert ids(made) == {"1", "2"}
    assert made.dropped == {"pairs with a gap within min_gap": 2, "prompts without a selected pair": 2}


# -- IFD


def test_ifd_in_its_limits():
    assert ifd(np.array([-7.0]), np.array([-7.0])).tolist() == [1.0]  # the prompt says nothing
    assert ifd(np.array([-1e-9]), np.array([-7.0])) == pytest.approx(0, abs=1e-9)  # it says all
    assert np.isnan(ifd(np.array([-1.0]), np.array([0.0])))


def test_pairs_are_selected_by_the_difference_of_ifd():
    groups = pairs(4)
    bare = [[-10.0, -10.0]] * 4
    logp = [[-9.0, -2.0], [-5.0, -4.9], [-1.0, -8.0], [-11.0, -1.0]]
    signals = Signals.of(groups, logp=logp, bare_logp=bare)
    made = select(groups, "ifd", top=1.0, signals=signals)
    assert made.scores[:3].tolist() == pytest.approx([0.7, 0.01, -0.7])
    assert made.dropped == {"pairs with an IFD above max_ratio": 1, "prompts without a selected pair": 1}
    assert ids(select(groups, "ifd", top=1.0, region="mid", signals=signals)) == {"1"}
    assert ids(select(groups, "ifd", top=1, region="bottom", signals=signals)) == {"2"}


# -- the ensemble


def test_strength_in_its_limits():
    gaps = np.array([[1.0, -2.0, 0.5]])
    u, s = strength(gaps)
    assert (u.tolist(), s.tolist()) == ([1.0, -2.0, 0.5], [0, 0, 0])  # one model
    u, s = strength(np.repeat(gaps, 4, axis=0))
    assert (u.tolist(), s.tolist()) == ([1.0, -2.0, 0.5], [0, 0, 0])  # all agree
    np.testing.assert_allclose(in_own_units(7 * gaps), in_own_units(gaps))
    assert (np.sign(in_own_units(np.array([[1.0, 2.0, 3.0]]))) > 0).all()  # the mean is not taken off


def ensemble(gaps, **options):
    groups = pairs(len(gaps[0]))
    signals = Signals.of(groups, rewards=[chosen_minus_rejected(row) for row in gaps])
    return select(groups, "ensemble", signals=signals, **options)


def test_the_lowest_are_turned_and_the_next_softened():
    gaps = [[-4.0, -0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], [-6.0, 0.2, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]]
    made = ensemble(gaps, flip=0.2, soften=0.2, smoothing=0.2, scale=False)
    by_id = {group.id: group.pairs[0] for group in made}
    assert by_id["0"] == Pair(1, 0, target_gap=5.0)
    assert by_id["1"] == Pair(1, 0, target_gap=0.15)
    assert [by_id[str(n)].prob for n in range(2, 5)] == [0.8, 0.8, None]
    assert made.scores[:3].tolist() == pytest.approx([5, 0.15, 1])  # u is -u after the turn
    assert made.facts["method"] == {
        "models": 2,
        "flipped": 2,
        "in the lowest share but u >= 0, not flipped": 0,
        "softened": 2,
        "share_with_u_below_0": 0.2,
        "mean_s": pytest.approx((1 + 0.35) / 10),
    }
    assert made.dropped == {}


def test_a_turned_pair_keeps_the_size_of_its_grade_gap():
    """In dataset units: the gap of the ensemble is in logits and is no strength."""
    graded = (Response("r0", grade=3.0), Response("r1", grade=1.0))
    groups = Groups.from_iterable(Group(str(n), "?", graded, pairs=(Pair(0, 1),)) for n in range(4))
    signals = Signals.of(groups, rewards=[chosen_minus_rejected([-5, 1, 2, 3])])
    made = select(groups, "ensemble", signals=signals, flip=0.25, soften=0.0, scale=False)
    assert made[0].pairs == (Pair(1, 0, strength=2.0, target_gap=5.0),)
    assert pair_evidence(made[0], made[0].pairs[0]).grade_gap == 2.0


def test_agreeing_labels_are_not_turned():
    made = ensemble([[float(n) for n in range(1, 11)]], flip=0.3, soften=0.0)
    assert made.facts["method"]["flipped"] == 0
    assert made.facts["method"]["in the lowest share but u >= 0, not flipped"] == 3
    assert all(group.pairs == (Pair(0, 1),) for group in made)


def test_scale_of_a_model_does_not_matter_nor_does_a_shift():
    rng = np.random.default_rng(0)
    gaps = rng.normal(size=(3, 40))
    one = ensemble(gaps)
    other = ensemble(gaps * np.array([[1.0], [100.0], [0.01]]))
    np.testing.assert_allclose(one.scores, other.scores)
    with pytest.raises(BadInput, match="model 1 gives every pair the same gap"):
        ensemble([[1.0, 2.0], [3.0, 3.0]])


@pytest.mark.parametrize("options", [{"flip": 0.7, "soften": 0.5}, {"smoothing": 0.5}, {"flip": -0.1}])
def test_bad_shares(options):
    with pytest.raises(BadInput, match=r"^ensemble: flip="):
        ensemble([[1.0, 2.0]], **options)


# -- confidence


def test_doubtful_labels_are_kept_dropped_or_softened():
    groups = pairs(3)
    gaps = [math.log(3), 0.0, -math.log(4)]
    signals = Signals.of(groups, rewards=[chosen_minus_rejected(gaps)])
    dropped = select(groups, "confidence", signals=signals)
    assert ids(dropped) == {"0"}
    assert dropped.dropped == {"pairs below min_prob": 2, "prompts without a selected pair": 2}
    kept = select(groups, "confidence", signals=signals, action="keep")
    assert list(kept) == list(groups)
    assert kept.facts["method"]["doubtful"] == 2
    soft = select(groups, "confidence", signals=signals, action="soften", min_prob=0.5)
    assert [group.pairs[0].prob for group in soft] == [None, None, pytest.approx(0.2)]
    assert ids(select(groups, "confidence", signals=signals, action="keep", top=2)) == {"0", "1"}


def test_confidence_of_the_data_itself():
    both = (Response("x"), Response("y"))
    votes = [Group(str(n), "?", both, pairs=(Pair(0, 1, votes=(n, 4 - n, 0)),)) for n in range(5)]
    made = select(Groups.from_iterable(votes), "confidence", min_prob=0.75)
    assert ids(made) == {"3", "4"}
    soft = select(Groups.from_iterable(votes), "confidence", min_prob=0.3, action="soften")
    assert soft[1].pairs[0] == Pair(0, 1, prob=0.25)
    graded = Groups.from_iterable(
        [Group("a", "?", (Response("x", grade=2.0), Response("y", grade=1.0)), pairs=(Pair(0, 1),))]
    )
    with pytest.raises(BadInput, match="a grade is in units of its own"):
        select(graded, "confidence", signals=Signals.of(graded, rewards=[[[2.0, 1.0]]], unit="grades"))


# -- RSO


def test_rejection_sampling_in_its_limits():
    rewards = [0.3, 2.0, -1.0, 1.5, 0.0, 1.9]
    assert rejection_sample(rewards, 3, 1e-9, random.Random(0)) == [1, 3, 5]
    drawn = [rejection_sample(rewards, 3, 1e9, random.Random(n)) for n in range(300)]
    share = [sum(at in one for one in drawn) / 300 for at in range(6)]
    assert all(0.4 < found < 0.6 for found in share)  # any 3 of 6, not the first 3
    assert rejection_sample([1.0] * 4, 4, 0.5, random.Random(0)) == [0, 1, 2, 3]
    assert rejection_sample([5.0, -900.0], 9, 0.5, random.Random(0)) == [0, 1]  # equal or few: no hang


def test_the_share_taken_is_that_of_the_target():
    # two candidates, one taken: the better one with certainty in the first pass unless the other is accepted before it
    p = math.exp(-1 / 0.5)
    taken = [rejection_sample([1.0, 0.0], 1, 0.5, random.Random(n)) for n in range(4000)]
    assert sum(one == [1] for one in taken) / 4000 == pytest.approx(p / 2, abs=0.015)


def test_thinned_groups():
    rows = [Group(str(n), "?", tuple(Response("same", grade=float(i % 3)) for i in range(6))) for n in range(5)]
    rows.append(Group("bare", "?", (Response("x"), Response("y", grade=1.0))))
    groups = Groups.from_iterable(rows)
    signals = Signals.of(groups, length=[[float(at) for at in range(len(g.responses))] for g in groups])
    made, own = thin_responses(groups, signals, count=2, beta=1e-9)
    assert own.length.tolist() == [2.0, 5.0] * 5 + [1.0]
    assert own.reward.tolist() == [2.0] * 10 + [1.0]
    own.check(made)
    assert [[r.grade for r in group.responses] for group in made] == [[2.0, 2.0]] * 5 + [[1.0]]
    assert made.dropped == {"responses not sampled": 20, "responses without a reward": 1}
    assert make_pairs(made, "best_worst", ties="drop").dropped["all ties"] == 5
    with pytest.raises(BadInput, match=r"^rso: count=1"):
        thin_responses(groups, Signals.of(groups), count=1)


def test_shares_of_an_ensemble_are_not_lost_to_rounding():
    """0.29 of 100 pairs is 29 of them, though 0.29 * 100 is 28.999 ..."""
    made = ensemble([[float(n - 50) for n in range(100)]], flip=0.29, soften=0.0)
    assert made.facts["method"]["flipped"] == 29
