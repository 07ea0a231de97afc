"""Biases planted and taken off; where there is none hardly anything moves."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marginkit.data.debiasing import ADJUSTMENTS, VERBOSITY_GRID, debias, length_measures, rows_of, smallest_correction
from marginkit.data.graded import Grades
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.records import Comparison, Group, Pair, Response


def world(seed=0, prompts=200, answers=5, *, models=("m",), pairs=False):
    """Responses of random lengths, with a quality that knows nothing of them; the level of a prompt is its own."""
    rng = np.random.default_rng(seed)
    groups, quality, length, level = [], [], [], []
    for at in range(prompts):
        size = rng.lognormal(4 + at % 3, 0.7, answers).astype(int) + 1
        texts = ["x" * int(n) + f" {at} {k}" for k, n in enumerate(size)]
        made = tuple(Response(text, model=models[int(rng.integers(len(models)))]) for text in texts)
        given_pairs = tuple(Pair(int(i), int(j)) for i, j in [rng.permutation(answers)[:2]]) if pairs else ()
        groups.append(Group(str(at), "?", made, pairs=given_pairs))
        quality += rng.normal(0, 1, answers).tolist()
        length += [len(text) for text in texts]
        level += [float(rng.normal(0, 4))] * answers
    return Groups.from_iterable(groups), np.array(quality), np.array(length, float), np.array(level)


def inside(values, answers=5):
    """Differences from the mean of the prompt."""
    table = np.asarray(values).reshape(-1, answers)
    return (table - table.mean(1, keepdims=True)).ravel()


def as_pairs(groups, utility):
    """Gaps of the pairs in groups."""
    starts = np.cumsum([0, *(len(group.responses) for group in groups)])
    return np.array(
        [utility[s + p.chosen] - utility[s + p.rejected] for s, g in zip(starts, groups, strict=False) for p in g.pairs]
    )


@pytest.mark.parametrize(
    ("name", "bias"),
    [
        ("length", lambda length: 1.5 * np.log(length)),
        ("length:log=false", lambda length: 0.01 * length),
        ("length_lowess", lambda length: np.minimum(np.log(length), 5.0) * 2),
    ],
)
def test_a_planted_length_bias_is_taken_off_utilities(name, bias):
    groups, quality, length, level = world(prompts=500)
    name, _, option = name.partition(":")
    options = {"log": False} if option else {}
    fair, found = debias(Grades(groups, "utility", quality + level + bias(length)), name, **options)
    left = inside(fair.values) - inside(quality)
    assert np.std(left) < 0.15 * np.std(inside(bias(length)))
    assert found["correlation with log length"]["before"] > 0.4
    assert abs(found["correlation with log length"]["after"]) < 0.06
    assert abs(found["longer is better"]["after"] - 0.5) < 0.04
    np.testing.assert_allclose(
        fair.values.reshape(-1, 5).mean(1), (quality + level + bias(length)).reshape(-1, 5).mean(1), atol=1e-9
    )


@pytest.mark.parametrize("name", ["length", "length_lowess"])
def test_where_there_is_no_bias_hardly_anything_moves(name):
    groups, quality, _, level = world(seed=3)
    fair, found = debias(Grades(groups, "utility", quality + level), name)
    assert found["mean size of what was taken off"] < 0.06
    assert np.corrcoef(inside(fair.values), inside(quality))[0, 1] > 0.99


@pytest.mark.parametrize("name", ["length", "length_tanh"])
def test_a_planted_length_bias_is_taken_off_gaps(name):
    groups, quality, length, level = world(prompts=1500, pairs=True)
    feature = 1.2 * np.log(length)
    if name == "length_tanh":
        difference = as_pairs(groups, length)
        planted = 1.2 * np.tanh(difference / difference.std())
    else:
        planted = as_pairs(groups, feature)
    gap = as_pairs(groups, quality + level)
    fair, found = debias(Grades(groups, "target_gap", gap + planted), name)
    assert np.std(fair.values - gap) < 0.15 * np.std(planted)
    assert found["slope" if name == "length" else "phi"] == pytest.approx(1.2, abs=0.15)


def test_equal_lengths_and_a_phi_of_zero_change_nothing():
    """The sheet's limits of the length-controlled margin."""
    same = Groups.from_iterable(
        Group(str(n), "?", (Response("aa"), Response("bb")), pairs=(Pair(0, 1),)) for n in range(4)
    )
    gaps = np.array([0.3, -1.0, 2.0, 0.0])
    for name in ("length", "length_tanh"):
        assert debias(Grades(same, "target_gap", gaps), name)[0].values.tolist() == gaps.tolist()
    groups, quality, _, _ = world(pairs=True)
    gap = as_pairs(groups, quality)
    fair, _ = debias(Grades(groups, "target_gap", gap), "length_tanh", phi=0)
    assert fair.values.tolist() == gap.tolist()
    pulled, _ = debias(Grades(groups, "target_gap", gap), "length_tanh", phi=2.0)
    difference = as_pairs(groups, np.array([len(r.text) for g in groups for r in g.responses], float))
    np.testing.assert_allclose(pulled.values, gap - 2 * np.tanh(difference / difference.std()))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["length", "length_tanh"]))
def test_which_of_a_pair_comes_first_does_not_matter(seed, name):
    groups, quality, length, _ = world(seed=seed, prompts=12, pairs=True)
    turned = Groups.from_iterable(
        Group(g.id, g.prompt, g.responses, pairs=tuple(Pair(p.rejected, p.chosen) for p in g.pairs)) for g in groups
    )
    gap = as_pairs(groups, quality + np.log(length))
    fair, _ = debias(Grades(groups, "target_gap", gap), name)
    other, _ = debias(Grades(turned, "target_gap", -gap), name)
    np.testing.assert_allclose(other.values, -fair.values, atol=1e-12)


def test_the_liking_for_a_place_is_taken_off_where_one_order_was_asked():
    rng = np.random.default_rng(0)
    quality, groups, gaps = rng.normal(0, 1, 400), [], []
    for at, true in enumerate(quality):
        order = ("ij", "ji", "both")[at % 3]
        shown = {"ij": ("0,1",), "ji": ("1,0",), "both": ("0,1", "1,0")}[order]
        asked = [Comparison(0, 1, 0.5, 0.5, order=one) for one in shown]
        groups.append(
            Group(str(at), "?", (Response("x"), Response("y")), comparisons=tuple(asked), pairs=(Pair(0, 1),))
        )
        gaps.append(true + {"ij": 0.8, "ji": -0.8, "both": 0.0}[order])
    fair, found = debias(Grades(Groups.from_iterable(groups), "target_gap", np.array(gaps)), "position")
    assert found["liking for the first place"] == pytest.approx(0.8, abs=0.1)
    assert np.abs(fair.values - quality).max() < 0.12
    assert fair.values[2] == gaps[2]  # both orders: nothing to take off
    assert found["pairs of one order"] == 267


def test_effects_of_sources_are_found_and_taken_off():
    groups, quality, _, level = world(prompts=400, models=("a", "b", "c"))
    effect = {"a": 2.0, "b": 0.0, "c": -1.0}
    planted = np.array([effect[r.model] for g in groups for r in g.responses])
    fair, found = debias(Grades(groups, "utility", quality + level + planted), "source")
    fitted = found["effect"]
    assert fitted["a"] - fitted["b"] == pytest.approx(2.0, abs=0.15)
    assert fitted["b"] - fitted["c"] == pytest.approx(1.0, abs=0.15)
    assert np.std(inside(fair.values) - inside(quality)) < 0.1
    clean, found = debias(fair, "source")
    assert max(map(abs, found["effect"].values())) < 1e-5
    np.testing.assert_allclose(clean.values, fair.values, atol=1e-5)


def test_models_seen_once_share_an_effect_instead_of_losing_their_grade():
    groups, quality, _, _ = world(prompts=100, models=("a", "b", "c"))
    rare = groups.map(
        lambda group: replace(
            group,
            responses=tuple(
                replace(r, model=f"{group.id} {k}" if r.model == "c" else r.model)
                for k, r in enumerate(group.responses)
            ),
        )
    )
    fair, found = debias(Grades(rare, "utility", quality), "source")
    together, _ = debias(Grades(groups, "utility", quality), "source")
    assert sorted(found["effect"]) == ["(rare)", "a", "b"]
    assert found["models too rare for an effect of their own"] > 50
    np.testing.assert_allclose(fair.values, together.values)
    with pytest.raises(BadInput, match="fewer than two models wrote 1000 graded responses or more"):
        debias(Grades(rare, "utility", quality), "source", least=1000)


def test_verbosity_takes_the_smallest_weight_that_suffices():
    rng = np.random.default_rng(0)
    verbosity, own = rng.normal(size=3000), rng.normal(size=3000)
    assert smallest_correction(own, verbosity) <= 0.05
    weight = smallest_correction(own + 0.5 * verbosity, verbosity)
    assert 0.4 < weight < 0.55
    at = VERBOSITY_GRID.index(weight)
    from scipy.stats import spearmanr

    for place, enough in ((at, True), (at - 1, False)):
        left = own + 0.5 * verbosity - VERBOSITY_GRID[place] * verbosity
        assert (spearmanr(left, verbosity).statistic <= 0.03) == enough
    assert smallest_correction(own + 50 * verbosity, verbosity) == 1.0
    assert VERBOSITY_GRID[:4] == (0.0, 0.01, 0.025, 0.05)
    assert VERBOSITY_GRID[-1] == 0.95


def test_verbosity_of_graded_aspects():
    rng = np.random.default_rng(1)
    wordy = rng.integers(0, 5, (300, 4))
    quality = rng.normal(size=(300, 4))
    groups = Groups.from_iterable(
        Group(str(n), "?", tuple(Response(f"{n} {k}", aspects={"verbosity": float(v)}) for k, v in enumerate(row)))
        for n, row in enumerate(wordy)
    )
    fair, found = debias(Grades(groups, "utility", (quality + 0.7 * wordy).ravel()), "verbosity")
    assert 0.5 < found["lambda"] < 0.95
    assert abs(np.corrcoef(inside(fair.values, 4), inside(wordy, 4))[0, 1]) < 0.1
    with pytest.raises(BadInput, match=r"no aspect 'words' \(the data has verbosity\)"):
        debias(Grades(groups, "utility", quality.ravel()), "verbosity", aspect="words")


def test_a_prob_becomes_a_gap_and_what_is_not_graded_stays_so():
    groups, quality, _, _ = world(prompts=30, pairs=True)
    prob = 1 / (1 + np.exp(-as_pairs(groups, quality)))
    prob[4] = np.nan
    prob[5] = 1.0
    fair, _ = debias(Grades(groups, "prob", prob, {"no votes": 1}), "length_tanh", phi=0.0)
    assert fair.kind == "target_gap"
    assert np.flatnonzero(np.isnan(fair.values)).tolist() == [4]
    np.testing.assert_allclose(fair.values[:4], np.log(prob[:4] / (1 - prob[:4])), atol=1e-9)
    assert fair.values[5] == pytest.approx(np.log(1e6 - 1))


def test_longer_is_better_counts_as_by_hand():
    groups = Groups.from_iterable([Group("a", "?", tuple(map(Response, ("a", "bb", "ccc", "ddd"))))])
    found = length_measures(rows_of(Grades(groups, "utility", np.array([0.0, 1.0, 1.0, -1.0]))))
    # a<bb longer better; a<ccc better; a>ddd worse; bb=ccc half; bb>ddd worse; ccc, ddd equally long: left out
    assert found["longer is better"] == pytest.approx((1 + 1 + 0 + 0.5 + 0) / 5)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("lenght", "utility", "the adjustments are length, "),
        ("length_tanh", "utility", "needs gaps of pairs"),
        ("length_lowess", "target_gap", "needs utilities of responses"),
        ("position", "utility", "a utility has no place"),
        ("position", "target_gap", "no pair was shown in one order only"),
        ("source", "utility", "fewer than two models"),
        ("verbosity", "utility", r"no aspect 'verbosity' \(the data has no aspects\)"),
    ],
)
def test_an_adjustment_that_makes_no_sense_is_refused(name, kind, words):
    groups, quality, _, _ = world(prompts=8, pairs=True)
    values = quality if kind == "utility" else as_pairs(groups, quality)
    with pytest.raises(BadInput, match=words):
        debias(Grades(groups, kind, values), name)


def test_every_adjustment_knows_its_options():
    groups, quality, _, _ = world(prompts=8)
    for name in ADJUSTMENTS:
        with pytest.raises(BadInput, match=f"debias={name}: unknown option nothing"):
            debias(Grades(groups, "utility", quality), name, nothing=1)
    with pytest.raises(BadInput, match="1 graded rows are too few"):
        debias(Grades(groups, "utility", np.where(np.arange(40) == 3, 1.0, np.nan), {"no grade": 39}), "length")
