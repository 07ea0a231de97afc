"""Best of n: the chances against all subsets, the KL against exact sums, the curve against what is known."""

import itertools
import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marginkit.errors import BadInput
from marginkit.evaluation.best_of_n import best_of_n_kl, best_of_n_kl_uniform, chances_of_best, judge_best_of_n
from marginkit.evaluation.over_optimisation import fit_over_optimisation


def _table(proxy, **columns):
    """One row a response of `[prompt][response]` rewards."""
    rows = [(f"p{i}", k, value) for i, values in enumerate(proxy) for k, value in enumerate(values)]
    group, response, reward = zip(*rows, strict=True)
    flat = {name: [v for values in given for v in values] for name, given in columns.items()}
    return pa.table({"group": group, "response": response, "cluster": group, "reward": reward} | flat)


KL = {1: 0, 2: 0.193147, 4: 0.636294, 8: 1.204442, 16: 1.835089, 32: 2.496986, 64: 3.174508, 128: 3.859843,
      256: 4.549084, 405: 5.006356}  # fmt: skip


@pytest.mark.parametrize(("n", "nats"), KL.items())
def test_the_table_of_kl(n, nats):
    assert float(best_of_n_kl(n)) == pytest.approx(nats, abs=6e-7)


@pytest.mark.parametrize(("answers", "n", "nats"), [(2, 2, 0.130812), (2, 8, 0.667588), (10, 4, 0.628825)])
def test_the_exact_kl_of_a_uniform_policy(answers, n, nats):
    assert best_of_n_kl_uniform(n, answers) == pytest.approx(nats, abs=6e-7)


@given(st.integers(1, 60), st.integers(1, 200))
def test_the_formula_is_an_upper_bound_and_the_limit_of_many_answers(n, answers):
    exact = best_of_n_kl_uniform(n, answers)
    assert -1e-12 <= exact <= min(float(best_of_n_kl(n)), math.log(answers)) + 1e-9
    assert best_of_n_kl_uniform(n, 200_000) == pytest.approx(float(best_of_n_kl(n)), abs=1e-3)


def _by_subsets(proxy, gold, n):
    """All ways to draw n, equal proxies shared equally: the slow way."""
    kept = []
    for drawn in itertools.combinations(range(len(proxy)), n):
        top = max(proxy[i] for i in drawn)
        kept.append(np.mean([gold[i] for i in drawn if proxy[i] == top]))
    return np.mean(kept)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-5, 5)), min_size=1, max_size=7))
def test_chances_are_those_of_all_subsets_ties_too(responses):
    proxy, gold = (np.asarray(column, float) for column in zip(*responses, strict=True))
    chances = chances_of_best(proxy)
    assert chances.sum(axis=1) == pytest.approx(np.ones(len(proxy)))
    for n in range(1, len(proxy) + 1):
        assert chances[n - 1] @ gold == pytest.approx(_by_subsets(proxy, gold, n), abs=1e-9)


def test_the_fixture_and_the_two_ends():
    chances = chances_of_best([1, 2, 3, 4])
    gold = np.array([0.1, 0.4, 0.2, 0.3])
    assert (chances @ gold)[1] == pytest.approx(0.2833333333)
    assert (chances @ gold)[0] == pytest.approx(gold.mean())
    assert (chances @ gold)[3] == pytest.approx(0.3)
    many = chances_of_best(np.arange(1000.0))
    assert np.isfinite(many).all()
    weights = [math.comb(i, 499) / math.comb(1000, 500) for i in range(1000)]
    assert many[499] == pytest.approx(np.array(weights), rel=1e-9, abs=1e-300)


def test_ties_everywhere_say_nothing_and_the_order_of_rows_does_not_matter():
    assert chances_of_best([2.0, 2.0, 2.0], 2).tolist() == [[pytest.approx(1 / 3)] * 3] * 2
    rng = np.random.default_rng(0)
    proxy, order = rng.integers(0, 4, 9).astype(float), rng.permutation(9)
    assert chances_of_best(proxy[order]) == pytest.approx(chances_of_best(proxy)[:, order])


def test_the_curve_of_a_known_world():
    """Gold = proxy + noise of half the variance: gold(n) = proxy(n) / 2 in standard normals, the ceiling above it."""
    rng = np.random.default_rng(1)
    gold = rng.normal(size=(1500, 8))
    proxy = gold + rng.normal(size=(1500, 8))
    found = judge_best_of_n(_table(proxy, grade=gold))
    expected = [0.0, 0.5642, 0.8463, 1.0294, 1.1630, 1.2672, 1.3522, 1.4236]  # means of the largest of n normals
    for n in (1, 2, 4, 8):
        assert found.gold[n - 1].low < expected[n - 1] / math.sqrt(2) < found.gold[n - 1].high
        assert found.ceiling[n - 1].low < expected[n - 1] < found.ceiling[n - 1].high
        assert found.gain[n - 1].value == pytest.approx(found.gold[n - 1].value - found.gold[0].value)
    assert (found.prompts, found.samples, found.tied, found.left_out) == (1500, 8, 0.0, {})
    assert found.gold[7].clusters == 1500
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["n"] == list(range(1, 9))


def test_a_perfect_and_a_reversed_proxy_are_the_bounds():
    gold = np.random.default_rng(2).normal(size=(30, 5))
    perfect, reversed_ = (judge_best_of_n(_table(sign * gold, utility=gold), "utility") for sign in (1, -1))
    assert [e.value for e in perfect.gold] == pytest.approx([e.value for e in perfect.ceiling])
    assert perfect.gold[4].value == pytest.approx(gold.max(1).mean())
    assert reversed_.gold[4].value == pytest.approx(gold.min(1).mean())
    assert reversed_.gain[4].high < 0


def test_another_table_is_the_gold_whatever_its_order():
    rng = np.random.default_rng(3)
    proxy, gold = rng.normal(size=(6, 4)), rng.normal(size=(6, 4))
    other = _table(gold)
    other = other.take(pa.array(rng.permutation(other.num_rows)))
    by_table, by_column = judge_best_of_n(_table(proxy), other), judge_best_of_n(_table(proxy, grade=gold))
    assert by_table.gold == by_column.gold


def test_prompts_that_cannot_be_judged_are_counted():
    proxy = [[1.0, 2.0, 3.0], [1.0, 2.0], [1.0, 2.0, 3.0], [5.0, 5.0, 4.0]]
    grade = [[1.0, 2.0, 3.0], [1.0, 2.0], [1.0, None, 3.0], [0.0, 2.0, 1.0]]
    found = judge_best_of_n(_table(proxy, grade=grade))
    assert (found.samples, found.prompts, found.largest) == (2, 3, 3)
    assert found.left_out == {"no gold score": 1}
    assert found.tied == pytest.approx(2 / 8)
    further = judge_best_of_n(_table(proxy, grade=grade), samples=3)
    assert (further.samples, further.prompts) == (3, 2)
    assert further.left_out == {"no gold score": 1, "fewer than 3 responses": 1}
    assert further.gold[2].value == pytest.approx((3.0 + 1.0) / 2)  # the tie at the top: the mean of 0 and 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: (t.drop_columns(["reward"]), "grade"), "no column 'reward'"),
        (lambda t: (t, "reward"), "gold='reward'"),
        (lambda t: (t.set_column(3, "reward", pa.array([math.inf, 1.0, 2.0, 3.0])), "grade"), "infinite"),
        (lambda t: (t.set_column(3, "reward", pa.array([None, 1.0, 2.0, 3.0])), "grade"), "1 responses have no reward"),
        (lambda t: (t, t.slice(0, 3)), "lacks 1 of 4 responses"),
        (lambda t: (pa.concat_tables([t, t]), "grade"), "is there 2 times"),
        (lambda t: (t.set_column(4, "grade", pa.nulls(4, pa.float64())), "grade"), "no response has a grade"),
        (lambda t: (t.slice(0, 0), "grade"), "no response has a grade|no prompt is left"),
    ],
)
def test_what_cannot_be_judged_is_refused(change, says):
    table, gold = change(_table([[1.0, 2.0], [3.0, 4.0]], grade=[[0.0, 1.0], [0.0, 1.0]]))
    with pytest.raises(BadInput, match=says):
        judge_best_of_n(table, gold)


@pytest.mark.parametrize(("proxy", "most"), [([], None), ([math.nan], None), ([1.0], 2), ([1.0], 0)])
def test_chances_need_responses(proxy, most):
    with pytest.raises(BadInput):
        chances_of_best(proxy, most)


@pytest.mark.parametrize("n", [0, -1])
def test_fewer_than_one_draw_is_none(n):
    with pytest.raises(BadInput):
        best_of_n_kl(n)
    with pytest.raises(BadInput):
        best_of_n_kl_uniform(n, 3)


def _gain(a, b, spread, prompts=200, samples=32, seed=0):
    d = np.sqrt(best_of_n_kl(np.arange(1, samples + 1)))
    noise = np.random.default_rng(seed).normal(0, spread, prompts)
    return (d * (a - b * d))[:, None] + d[:, None] * noise


def test_the_fit_finds_a_peak_that_is_there():
    fit = fit_over_optimisation(_gain(1.0, 0.4, 0.1), range(200))
    assert fit.identified
    assert fit.a.value == pytest.approx(1.0, abs=0.03)
    assert fit.b.value == pytest.approx(0.4, abs=1e-6)
    assert fit.peak == pytest.approx(1.25, abs=0.05)
    assert fit.peak_gain == pytest.approx(1 / 1.6, abs=0.05)
    assert fit.seen == pytest.approx(math.sqrt(KL[32]), abs=1e-6)


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [(1.0, 0.05, "beyond the"), (1.0, -0.1, "does not surely bend"), (-0.5, 0.1, "does not surely rise")],
)
def test_the_fit_says_where_the_curve_cannot_tell(a, b, says):
    fit = fit_over_optimisation(_gain(a, b, 0.1), range(200))
    assert not fit.identified
    assert (fit.peak, fit.peak_gain) == (None, None)
    assert says in fit.says


def test_the_fit_needs_points():
    assert fit_over_optimisation(_gain(1.0, 0.4, 0.1, samples=4), range(200)) is None
    with pytest.raises(BadInput):
        fit_over_optimisation(np.zeros((8, 3)), range(4))
