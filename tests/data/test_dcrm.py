"""DCRM and best-of-N^2: the formula as recalled, its limiting cases, and an exact search."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marginkit.data.best_of_n2 import Job, best_pair, best_pairs
from marginkit.data.dcrm import RECALLED, DcrmOptions, dcrm, gap_std, logp_places, set_score
from marginkit.data.distances import edit_distance, ids_as_bytes, ids_as_text
from marginkit.data.pairing import make_pairs
from marginkit.data.signals import Signals
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.records import Group, Response

EDIT = {"distance": "edit"}


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def of(**options):
    return DcrmOptions.of(options)


def test_the_formula_by_hand():
    # sigmoid(2) = 0.880797; (0.880797 - 0.5) / (30 + 12.5 + 1) = 0.00875395
    assert dcrm(2.0, 30.0, 12.5) == pytest.approx(0.380797078 / 43.5, rel=1e-8)
    assert dcrm(0.0, 3.0, 4.0) == 0
    assert dcrm(0.0, 0.0, 0.0) == 0  # identical text: a deterministic reward model gives it the same reward


@given(st.floats(-50, 50), st.floats(0, 1000), st.floats(0, 1000))
def test_antisymmetric_bounded_and_monotone(gap, edit, shift):
    found = float(dcrm(gap, edit, shift))
    assert float(dcrm(-gap, edit, shift)) == -found
    assert abs(found) <= 1 / (2 * (edit + shift + 1)) + 1e-15
    assert float(dcrm(gap + 1, edit, shift)) >= found
    assert abs(float(dcrm(gap, edit + 1, shift))) <= abs(found)
    assert abs(float(dcrm(gap, edit, shift + 1))) <= abs(found)
    assert float(dcrm(gap, edit, shift, 1e-300)) == pytest.approx(2 * float(dcrm(gap, 2 * edit, 2 * shift, 2e-300)))


def by_all_pairs(job, options, scale=1.0):
    """Every ordered pair, scored one by one; of equal ones the first by the index of the pair."""
    found = []
    sides = [range(len(job.reward))] * 2 if job.strong is None else [job.strong, job.weak]
    for order, (i, j) in enumerate(itertools.product(*sides)):
        gap = job.reward[i] - job.reward[j]
        place = job.place or [0.0] * len(job.reward)
        if i == j or not math.isfinite(gap) or not math.isfinite(place[i] - place[j]) or gap == 0:
            continue
        if job.strong is None and gap < 0:  # its mirror image is met too
            continue
        if abs(gap) < options.min_gap:
            continue
        edit = edit_distance(job.texts[i], job.texts[j]) if options.edits else 0
        if options.edit_unit == "normalised":
            edit = edit / max(len(job.texts[i]), len(job.texts[j]), 1)
        score = math.tanh(gap / scale / 2) / 2 / (edit + abs(place[i] - place[j]) + options.eps)
        first = order if job.strong is not None else (min(i, j), max(i, j))
        found.append((-score, first, i, j))
    return min(found, default=None)


REWARDS = st.sampled_from([0.0, 0.5, 1.0, 3.0, math.nan])
PLACES = st.sampled_from([0.0, -3.0, -40.0, math.nan])


@given(
    st.lists(st.tuples(st.text("abc", max_size=9), REWARDS, PLACES), min_size=1, max_size=6),
    st.sampled_from(["raw", "normalised"]),
    st.sampled_from(["both", "edit", "logp", "none"]),
    st.sampled_from([0.0, 0.6]),
    st.booleans(),
    st.sampled_from([1.0, 0.3]),
)
def test_the_search_is_exact(rows, unit, distance, min_gap, fixed, scale):
    options = of(edit_unit=unit, distance=distance, min_gap=min_gap)
    if fixed:
        options = of(edit_unit=unit, distance=distance, min_gap=min_gap, strong="s", weak="w", keep_negative=True)
    texts, rewards, places = zip(*rows, strict=True)
    strong, weak = (tuple(range(0, len(rows), 2)), tuple(range(1, len(rows), 2))) if fixed else (None, None)
    job = Job(texts, rewards, places if options.logps else None, strong=strong, weak=weak)
    found, wanted = best_pair(job, options, scale), by_all_pairs(job, options, scale)
    if wanted is None:
        assert found is None
    else:
        assert found.dcrm == pytest.approx(-wanted[0], rel=1e-12)
        assert (found.chosen, found.rejected) == wanted[2:]


def test_few_distances_are_computed(monkeypatch):
    from marginkit.data import best_of_n2

    rng = np.random.default_rng(0)
    asked = []
    monkeypatch.setattr(best_of_n2, "edit_distance", lambda a, b, cut: asked.append(cut) or edit_distance(a, b, cut))
    texts = tuple("".join(map(chr, rng.integers(0, 500, rng.integers(200, 400)))) for _ in range(16))
    best_pair(Job(texts, tuple(rng.normal(size=16))), of(**EDIT))
    assert len(asked) < 120
    assert None not in asked[1:]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_with_constant_distance_it_is_best_against_worst(grades):
    group = Group("g", "?", tuple(Response("same", grade=float(grade)) for grade in grades))
    groups = Groups.from_iterable([group])
    for options in ({"distance": "none"}, EDIT):
        found, wanted = make_pairs(groups, "dcrm", options=options), make_pairs(groups, "best_worst", ties="drop")
        gaps = [[grades[p.chosen] - grades[p.rejected] for p in one.pairs] for one in found]
        assert gaps == [[grades[p.chosen] - grades[p.rejected] for p in one.pairs] for one in wanted]
        assert found.dropped == ({} if gaps else {"one response only": 1} if len(grades) < 2 else {"all ties": 1})


def test_distance_alone_by_a_scale_near_0():
    responses = [("a b c d", 9.0), ("x y z", 1.0), ("x y z w", 1.5)]
    group = Group("g", "?", tuple(Response(text, grade=grade) for text, grade in responses))
    groups = Groups.from_iterable([group])
    chosen = [make_pairs(groups, "dcrm", options=EDIT | {"reward_scale": s})[0].pairs[0] for s in ("raw", 1e-9)]
    assert [(pair.chosen, pair.rejected) for pair in chosen] == [(0, 1), (2, 1)]


def test_a_constant_added_to_the_rewards_of_a_prompt_changes_nothing():
    rng = np.random.default_rng(1)
    for _ in range(20):
        texts = tuple("".join(rng.choice(list("abcd"), rng.integers(1, 9))) for _ in range(5))
        reward = rng.normal(size=5).round(2)
        one, other = (best_pair(Job(texts, tuple(reward + shift)), of(**EDIT)) for shift in (0, 64))
        assert (one.chosen, one.rejected) == (other.chosen, other.rejected)


def test_the_share_of_prompts_where_it_differs_from_best_worst():
    # the sheet: 51% for 5 responses, Gaussian rewards and random distances; of which law is not said, so 45 to 65%
    rng = np.random.default_rng(0)
    reward = rng.normal(size=(4000, 5))
    i, j = np.triu_indices(5, 1)
    gap = np.abs(reward[:, i] - reward[:, j])
    score = dcrm(gap, rng.random(gap.shape), 0.0)
    assert 0.45 < (score.argmax(axis=1) != gap.argmax(axis=1)).mean() < 0.65


def graded(*rows, id="g", model=None):
    return Group(id, "?", tuple(Response(text, grade=grade, model=model) for text, grade in rows))


def test_a_fixed_label_by_who_wrote():
    rows = (Response("a b c", grade=1.0, model="big"), Response("a b", grade=3.0, model="small"))
    other = (Response("a b c", grade=4.0, model="big"), Response("a b", grade=3.0, model="small"))
    nobody = graded(("x", 1.0), ("y", 2.0), id="n")
    groups = Groups.from_iterable([Group("neg", "?", rows), Group("pos", "?", other), nobody])
    fixed = EDIT | {"strong": "big", "weak": "small"}
    made = make_pairs(groups, "dcrm", options=fixed)
    assert made.column("id") == ["pos"]
    assert made.dropped == {"no pair as dcrm wants it": 2}
    kept = make_pairs(groups, "dcrm", options=fixed | {"keep_negative": True})
    assert [(g.id, g.pairs[0].chosen, g.pairs[0].rejected) for g in kept] == [("neg", 0, 1), ("pos", 0, 1)]


def test_of_negative_ones_the_farthest_is_the_best_and_is_not_cut_off():
    # strong is worse than both: -0.32 over 10 + 1 edits beats -0.20 over 4 + 1, though lengths allow 0 + 1 and 4 + 1
    job = Job(("abcdefghij", "qrstuvwxyz", "abcdef"), (0.0, 1.5, 0.85), strong=(0,), weak=(1, 2))
    options = of(**EDIT, strong="s", weak="w", keep_negative=True)
    found, wanted = best_pair(job, options), by_all_pairs(job, options)
    assert (found.chosen, found.rejected) == wanted[2:] == (0, 1)
    assert found.edit == 10


def test_noise_level_gaps_are_left_out():
    groups = Groups.from_iterable([graded(("a", 1.0), ("b", 1.01)), graded(("a", 1.0), ("b", 3.0), id="h")])
    made = make_pairs(groups, "dcrm", options=EDIT | {"min_gap": 0.1})
    assert made.column("id") == ["h"]
    assert made.dropped == {"no pair as dcrm wants it": 1}


def test_log_probabilities_decide_too():
    group = graded(("a b", 3.0), ("a c", 1.0), ("a d", 1.0))
    groups = Groups.from_iterable([group])
    signals = Signals.of(groups, logp=[[-10.0, -90.0, -12.0]], length=[[2, 2, 2]])
    made = make_pairs(groups, "dcrm", signals=signals)
    assert (made[0].pairs[0].chosen, made[0].pairs[0].rejected) == (0, 2)
    assert made.facts["mean_e_D"] == 1
    assert made.facts["mean_p_D"] == 2
    assert made.facts["dcrm"]["formula"] == RECALLED
    assert made.facts["set_dcrm"] == pytest.approx((sigmoid(2) - 0.5) / 4)


def test_missing_log_probabilities_are_not_0():
    groups = Groups.from_iterable([graded(("a", 3.0), ("b", 1.0))])
    with pytest.raises(BadInput, match=r"p_D needs the log-probabilities .*--set distance=edit"):
        make_pairs(groups, "dcrm")
    signals = Signals.of(groups, logp=[[-1.0, None]])
    assert make_pairs(groups, "dcrm", signals=signals).dropped == {"no evidence to pair on": 1}


def test_rewards_of_a_model_are_the_evidence_of_its_pairs():
    groups = Groups.from_iterable([graded(("a b", 1.0), ("a c", 3.0))])
    signals = Signals.of(groups, rewards=[[[2.5, 1.0]]])
    [pair] = make_pairs(groups, "dcrm", signals=signals, options=EDIT)[0].pairs
    assert (pair.chosen, pair.rejected, pair.target_gap) == (0, 1, 1.5)
    assert make_pairs(groups, "dcrm", options=EDIT)[0].pairs[0].target_gap is None


def test_units_are_not_mixed_and_options_are_checked():
    for bad in (
        {"edit_unit": "normalised", "logp_unit": "sum"},
        {"edit_unit": "raw", "logp_unit": "mean"},
        {"eps": 0.0},
        {"distance": "far"},
        {"reward_scale": 0.0},
        {"reward_scale": "mad"},
        {"strong": "a"},
        {"keep_negative": True},
        {"min_gap": -1.0},
        {"epsilon": 1.0},
    ):
        with pytest.raises(BadInput, match=r"^dcrm: "):
            DcrmOptions.of(bad)
    assert of(edit_unit="normalised").eps == 1e-6
    assert of().eps == 1.0
    assert of(edit_unit="normalised", logp_unit="mean", distance="edit").logp_unit == "mean"


def test_units_of_log_probabilities():
    logp, length = np.array([-4.0, -9.0]), np.array([2.0, 3.0])
    assert logp_places(of(), logp, None).tolist() == [-4.0, -9.0]
    mean = logp_places(of(edit_unit="normalised"), logp, length)
    assert mean.tolist() == [-2.0, -3.0]
    prob = logp_places(of(edit_unit="normalised", logp_unit="prob"), logp, None)
    assert prob.tolist() == pytest.approx([math.exp(-4), math.exp(-9)])
    assert logp_places(of(**EDIT), None, None) is None
    with pytest.raises(BadInput, match="lengths"):
        logp_places(of(edit_unit="normalised"), logp, None)


@given(st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=5), min_size=1, max_size=4))
def test_the_scale_is_the_std_of_all_gaps(rewards):
    gaps = [a - b for row in rewards for a, b in itertools.permutations(row, 2)]
    starts = np.cumsum([0, *map(len, rewards)])
    wanted = float(np.std(gaps)) if gaps else 0.0
    assert gap_std(np.concatenate([np.array(row) for row in rewards]), starts) == pytest.approx(wanted, abs=1e-6)


def test_rescaling_makes_the_scale_of_the_rewards_irrelevant():
    rng = np.random.default_rng(3)
    rows = [[("".join(rng.choice(list("abc "), 8)), float(r)) for r in rng.normal(size=4)] for _ in range(30)]

    def pairs(factor, scale):
        made = [graded(*((t, factor * g) for t, g in row), id=str(n)) for n, row in enumerate(rows)]
        found = make_pairs(Groups.from_iterable(made), "dcrm", options=EDIT | {"reward_scale": scale})
        return [(g.id, g.pairs[0].chosen, g.pairs[0].rejected) for g in found]

    assert pairs(1.0, "std") == pairs(0.01, "std")
    assert pairs(1.0, "raw") != pairs(100.0, "raw")


def test_two_aggregates_of_a_set():
    gap, edit, shift = np.array([1.0, 1.0]), np.array([1.0, 9.0]), np.zeros(2)
    a = sigmoid(1) - 0.5
    assert set_score(gap, edit, shift, of(**EDIT)) == pytest.approx((a / 2 + a / 10) / 2)
    assert set_score(gap, edit, shift, of(**EDIT, aggregate="ratio_of_means")) == pytest.approx(a / 6)


def test_processes_change_nothing():
    rng = np.random.default_rng(0)
    jobs = [
        Job(tuple("".join(rng.choice(list("abcdef "), 30)) for _ in range(4)), tuple(rng.normal(size=4)), words=True)
        for _ in range(600)
    ]
    alone = list(best_pairs(iter(jobs), of(**EDIT)))
    assert list(best_pairs(iter(jobs), of(**EDIT), workers=2)) == alone
    assert len(alone) == 600


def test_bytes_say_what_texts_say():
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 40, rng.integers(1, 30)) for _ in range(5)]
    reward = tuple(rng.normal(size=5))
    one, other = (Job(tuple(map(form, ids)), reward) for form in (ids_as_text, ids_as_bytes))
    assert best_pair(one, of(**EDIT)) == best_pair(other, of(**EDIT))
    assert best_pair(other, of(**EDIT)).edit == edit_distance(
        *(ids_as_text(ids[at]) for at in (best_pair(other, of(**EDIT)).chosen, best_pair(other, of(**EDIT)).rejected))
    )


def test_pairs_by_the_tokens_of_a_tokenizer():
    group = graded(("ab", 3.0), ("zz", 1.0), ("ac", 1.0))
    made = make_pairs(
        Groups.from_iterable([group]), "dcrm", options=EDIT, tokenize=lambda texts: [[*t.encode()] for t in texts]
    )
    assert (made[0].pairs[0].chosen, made[0].pairs[0].rejected) == (0, 2)
    assert made.facts["mean_e_D"] == 1
    assert made.facts["compared"] == "tokens"
