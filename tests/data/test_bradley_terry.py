"""The Bradley-Terry fit: the sheet's check values, invariances, and a slow optimiser on small random tournaments."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from marginkit.data.bradley_terry import (
    Comparisons,
    bootstrap_bradley_terry,
    describe_components,
    elo,
    fit_bradley_terry,
)
from marginkit.data.pairing import make_pairs
from marginkit.data.vote_graders import grade_by_ranking
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.records import Comparison, Group, Response


def fit(rows, items, **options):
    left, right, wins_left, wins_right = zip(*rows, strict=True)
    return fit_bradley_terry(Comparisons.make(left, right, wins_left, wins_right, items), **options)


@st.composite
def tournaments(draw):
    items = draw(st.integers(2, 7))
    pairs = st.tuples(st.integers(0, items - 1), st.integers(0, items - 1)).filter(lambda p: p[0] != p[1])
    wins = st.one_of(st.integers(0, 9), st.floats(0, 1))
    rows = draw(st.lists(st.tuples(pairs, wins, wins), min_size=1, max_size=25))
    return items, [(i, j, *counts) for (i, j), *counts in rows]


def slow_fit(rows, items, l2):
    """The same minimum by a general optimiser, one comparison at a time."""

    def loss(u):
        total = l2 / 2 * float(u @ u)
        slope = l2 * u
        for i, j, wins, losses in rows:
            gap = u[i] - u[j]
            total += wins * np.logaddexp(0, -gap) + losses * np.logaddexp(0, gap)
            pull = (wins + losses) / (1 + np.exp(-gap)) - wins
            slope = slope + pull * (np.eye(items)[i] - np.eye(items)[j])
        return total, slope

    return minimize(loss, np.zeros(items), jac=True, method="L-BFGS-B", options={"gtol": 1e-10, "ftol": 1e-15}).x


@settings(max_examples=60, deadline=None)
@given(tournaments(), st.sampled_from([0.02, 0.1, 1.0]))
def test_it_is_the_minimum_that_a_slow_optimiser_finds(tournament, l2):
    items, rows = tournament
    np.testing.assert_allclose(fit(rows, items, l2=l2), slow_fit(rows, items, l2), atol=2e-5)


def test_thirty_of_forty_wins_are_190_85_elo():
    u = fit([(0, 1, 30, 10)], 2, l2=1e-10)
    assert u[0] - u[1] == pytest.approx(np.log(3), abs=1e-6)
    assert np.diff(elo(u))[0] == pytest.approx(-190.85, abs=0.005)
    assert elo(np.zeros(1))[0] == 1000


@settings(max_examples=30, deadline=None)
@given(tournaments())
def test_order_of_rows_sides_and_names_do_not_matter(tournament):
    items, rows = tournament
    u = fit(rows, items)
    turned = [(j, i, losses, wins) for i, j, wins, losses in reversed(rows)]
    np.testing.assert_allclose(fit(turned, items), u, atol=1e-8)
    renamed = [(items - 1 - i, items - 1 - j, wins, losses) for i, j, wins, losses in rows]
    np.testing.assert_allclose(fit(renamed, items)[::-1], u, atol=1e-8)


def test_only_differences_are_fitted_so_each_part_is_centred():
    u = fit([(0, 1, 3, 1), (1, 2, 2, 5), (3, 4, 9, 1)], 6)
    assert u[:3].sum() == pytest.approx(0, abs=1e-9)
    assert u[3:5].sum() == pytest.approx(0, abs=1e-9)
    assert u[5] == 0
    started = fit([(0, 1, 3, 1), (1, 2, 2, 5), (3, 4, 9, 1)], 6, start=np.full(6, 7.0))
    np.testing.assert_allclose(started, u, atol=1e-7)


def test_all_prompts_at_once_are_each_prompt_alone():
    rng = np.random.default_rng(1)
    rows, alone = [], []
    for start in range(0, 60, 6):
        own = [(i, j, *rng.integers(0, 6, 2)) for i in range(6) for j in range(i)]
        alone.append(fit(own, 6))
        rows += [(start + i, start + j, wins, losses) for i, j, wins, losses in own]
    rows += [(60, 61, 4000, 0)]  # a hard one beside them does not move the others
    np.testing.assert_allclose(fit(rows, 62)[:60], np.concatenate(alone), atol=1e-8)


def test_ties_are_symmetric_and_pull_together():
    assert fit([(0, 1, 5, 5)], 2).tolist() == [0.0, 0.0]
    without = fit([(0, 1, 4, 1)], 2)
    with_ties = fit([(0, 1, 4 + 5, 1 + 5)], 2)  # ten ties: half a win each
    assert 0 < with_ties[0] - with_ties[1] < without[0] - without[1]


def test_complete_separation_stays_finite_and_grows_as_the_penalty_falls():
    gaps = []
    for l2 in (1.0, 0.1, 1e-3, 1e-8):
        u = fit([(0, 1, 8, 0), (1, 2, 8, 0), (0, 2, 8, 0)], 3, l2=l2)
        assert np.isfinite(u).all()
        assert u[0] > u[1] > u[2]
        gaps.append(u[0] - u[2])
    assert gaps == sorted(gaps)
    with pytest.raises(BadInput, match="l2=0: give a number > 0"):
        fit([(0, 1, 8, 0)], 2, l2=0)


def test_planted_utilities_are_found():
    rng = np.random.default_rng(0)
    true = rng.normal(0, 1.5, 40)
    i, j = np.triu_indices(40, 1)
    wins = rng.binomial(50, 1 / (1 + np.exp(true[j] - true[i])))
    u = fit_bradley_terry(Comparisons.make(i, j, wins, 50 - wins, 40), l2=0.01)
    assert np.abs((u - u.mean()) - (true - true.mean())).max() < 0.3


def test_connected_parts_are_counted_and_votes_of_zero_do_not_connect():
    found = Comparisons.make([0, 2, 1], [1, 3, 2], [1, 1, 0], [0, 2, 0], 5).components()
    assert describe_components(found, list("abcde")) == {"parts": 3, "for example": ["a", "c", "e"]}


def test_the_bootstrap_spreads_as_theory_says_and_repeats():
    votes = Comparisons.make([0], [1], [300], [100], 2)
    fits = bootstrap_bradley_terry(votes, samples=400, l2=1e-6, seed=3)
    gap = fits[:, 0] - fits[:, 1]
    assert gap.std() == pytest.approx(np.sqrt(1 / 300 + 1 / 100), rel=0.12)
    assert gap.mean() == pytest.approx(np.log(3), abs=0.03)
    again = bootstrap_bradley_terry(votes, samples=400, l2=1e-6, seed=3)
    np.testing.assert_array_equal(fits, again)
    with pytest.raises(BadInput, match="give at least one of each"):
        bootstrap_bradley_terry(votes, samples=0)


def test_nonsense_is_refused():
    with pytest.raises(BadInput, match="compared with itself"):
        Comparisons.make([1], [1], [1], [0], 2)
    with pytest.raises(BadInput, match=">= 0"):
        Comparisons.make([0], [1], [-1], [0], 2)
    with pytest.raises(BadInput, match=">= 0"):
        Comparisons.make([0], [1], [float("nan")], [0], 2)


def test_votes_that_a_pair_sums_up_count_once():
    """`make_pairs` sums comparisons into the votes of pairs and keeps both: ranking them again changes nothing."""
    group = Group(
        "a", "?", tuple(map(Response, "xyz")), comparisons=(Comparison(0, 1, 3, 1), Comparison(1, 2, 2, 1, 1))
    )
    groups = Groups.from_iterable([group])
    once, twice = grade_by_ranking(groups), grade_by_ranking(make_pairs(groups))
    assert twice.values.tolist() == once.values.tolist()
    alone = make_pairs(groups).map(lambda one: replace(one, comparisons=()))
    assert grade_by_ranking(alone).values == pytest.approx(once.values)
