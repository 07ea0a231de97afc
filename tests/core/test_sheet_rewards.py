"""What the sheet on reward models says of APLOT and the baselines beyond numbers: limits, identities, invariances."""

import math
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from sheets import close, f64, heads, sig, slope, sp, spread
from torch import Tensor

import marginkit as mk
from marginkit.core.tensors import Labels, PairScores, SequenceScores
from marginkit.core.transport import aplot, entropic_plan

D = spread(24, seed=1, low=-4.0, high=4.0)
HEAD = torch.stack((D + spread(24, seed=2), spread(24, seed=2)), 1)
STRENGTH = spread(24, seed=3, low=0.0, high=3.0)
GAP = HEAD[:, 0] - HEAD[:, 1]
PAIRS = PairScores(head=HEAD, strength=STRENGTH, hidden=spread(24, 2, 6, seed=4))


def paid(recipe: str, scores: PairScores = PAIRS, **options: object) -> Tensor:
    """The loss of each pair."""
    return mk.recipe(recipe, **options)(scores)


def margin(scores: PairScores, eps: float = 0.1, norm: str = "row", semantic: float = 0.1) -> Tensor:
    """APLOT's margin of each pair."""
    gap = scores.head[:, 0] - scores.head[:, 1]
    return aplot(Labels(tie=scores.tie), gap, None, scores, eps=eps, semantic=semantic, norm=norm).margin


def cost(scores: PairScores, semantic: float = 0.1) -> Tensor:
    """The cost written out, cell by cell."""
    return torch.stack(
        [
            torch.stack(
                [
                    (1.0 - semantic) * (1.0 - sig((a - b).abs())) + semantic * (h @ k) / (h.norm() * k.norm())
                    for b, k in zip(scores.head[:, 1], scores.hidden[:, 1], strict=True)
                ]
            )
            for a, h in zip(scores.head[:, 0], scores.hidden[:, 0], strict=True)
        ]
    )


def rows(count: int) -> PairScores:
    """The first pairs."""
    return PairScores(head=HEAD[:count], hidden=PAIRS.hidden[:count])


# ------------------------------------------------------------------------------------------------------- 1.2, APLOT


def test_the_plan_has_uniform_marginals_and_the_optimality_of_sinkhorn() -> None:
    """Rows and columns sum to 1 / N; log P = f_i + g_j - cost / eps, so that every 2 x 2 determinant is the cost's."""
    c = cost(rows(7))
    plan = entropic_plan(c, eps=0.1, iterations=2000)
    close(plan.sum(0), f64([1.0 / 7] * 7))
    close(plan.sum(1), f64([1.0 / 7] * 7))
    log_ratio = torch.log(plan) + c / 0.1
    centred = log_ratio - log_ratio.mean(0) - log_ratio.mean(1, keepdim=True) + log_ratio.mean()
    assert centred.abs().max() < 1e-9


@pytest.mark.parametrize("norm", ["row", "none"])
def test_the_margin_is_the_row_of_plan_times_cost(norm: str) -> None:
    """Of m_i = sum_j P_ij C_ij, times N with the row norm."""
    c = cost(rows(7))
    wanted = (entropic_plan(c, eps=0.1, iterations=50) * c).sum(1) * (7.0 if norm == "row" else 1.0)
    close(margin(rows(7), norm=norm), wanted)


def test_a_large_eps_spreads_the_plan_evenly() -> None:
    """P -> 1 / N^2, and m_i -> the mean of row i."""
    c = cost(rows(7))
    close(entropic_plan(c, eps=1e9, iterations=50), torch.full((7, 7), 1.0 / 49, dtype=torch.float64))
    close(margin(rows(7), eps=1e9), c.mean(1), within=1e-8)


def test_a_small_eps_gives_the_assignment_of_least_cost() -> None:
    """P -> permutation / N, which is not the diagonal here."""
    c = cost(rows(4))
    best = min(permutations(range(4)), key=lambda order: sum(c[i, j].item() for i, j in enumerate(order)))
    assert best != (0, 1, 2, 3)
    wanted = torch.zeros(4, 4, dtype=torch.float64)
    for i, j in enumerate(best):
        wanted[i, j] = 0.25
    close(entropic_plan(c, eps=3e-4, iterations=5000), wanted, within=1e-3)
    close(margin(rows(4), eps=3e-4), 4.0 * (wanted * c).sum(1), within=1e-2)


def test_one_pair_is_its_own_transport() -> None:
    """P = 1 and m = C_11."""
    for i in range(3):
        one = PairScores(head=HEAD[i : i + 1], hidden=PAIRS.hidden[i : i + 1])
        close(margin(one), cost(one)[0])


def test_margins_by_row_lie_between_the_least_and_the_largest_cost_there_is() -> None:
    """[-0.1, 0.55] at weights 0.9 and 0.1; literal margins fade as 1 / N."""
    found = margin(PAIRS)
    assert found.min() >= -0.1
    assert found.max() <= 0.55
    close(found, 24.0 * margin(PAIRS, norm="none"))
    assert margin(PAIRS, norm="none").max() <= 0.55 / 24


def test_a_badly_misranked_pair_gets_no_extra_push() -> None:
    """The margin falls with |d| on both sides, so the slope is -sigmoid(m - d) with m -> 0.1 cos."""
    hidden = torch.tensor([[[1.0, 0.0], [0.6, 0.8]]], dtype=torch.float64)
    for d in (1e3, -1e3):
        found = margin(PairScores(head=f64([[d, 0.0]]), hidden=hidden))
        assert found.item() == pytest.approx(0.1 * 0.6, abs=1e-12)
    middle = margin(PairScores(head=f64([[0.0, 0.0]]), hidden=hidden)).item()
    assert middle == pytest.approx(0.45 + 0.06, abs=1e-12)


def test_a_constant_on_all_rewards_leaves_aplot_as_it_is() -> None:
    """Loss and margin."""
    moved = replace(PAIRS, head=HEAD + 13.7)
    close(margin(moved), margin(PAIRS))
    close(paid("aplot", moved), paid("aplot"))


def test_the_margin_of_aplot_is_detached_and_left_out_in_evaluation() -> None:
    """The gradient is -sigmoid(m - d) of each pair, and none reaches the hidden states; evaluation is plain BT."""
    head, hidden = HEAD.clone().requires_grad_(True), PAIRS.hidden.clone().requires_grad_(True)
    loss = mk.recipe("aplot", eps=0.1, semantic=0.1, norm="row")
    found = loss(PairScores(head=head, hidden=hidden))
    close(found, sp(margin(PAIRS) - GAP))
    of_head, of_hidden = torch.autograd.grad(found.sum(), (head, hidden), allow_unused=True)
    close(of_head, torch.stack((-sig(margin(PAIRS) - GAP), sig(margin(PAIRS) - GAP)), 1))
    assert of_hidden is None
    close(loss.eval()(PAIRS), paid("bt"))


def test_ties_take_no_part_in_the_transport() -> None:
    """The margins of the others are those without the tie."""
    tie = torch.tensor([False, True, False, False])
    found = margin(replace(rows(4), tie=tie))
    kept = PairScores(head=HEAD[:4][~tie], hidden=PAIRS.hidden[:4][~tie])
    close(found[~tie], margin(kept))
    assert margin(replace(rows(2), tie=torch.tensor([True, True]))).tolist() == [0.0, 0.0]


# --------------------------------------------------------------------------------------------- 2.3, the baselines


def test_bt_is_what_every_baseline_is_without_its_own_term() -> None:
    """Smoothing 0, margin 0, t 1, focal gamma 0, centring 0, scale of 1 at strength 1."""
    bt = paid("bt")
    close(bt, sp(-GAP))
    close(paid("bt_smooth", eps=0.0), bt)
    close(paid("bt_margin", scale=0.0), bt)
    close(paid("mmpo_rm", PairScores(head=HEAD, prob=torch.ones(24, dtype=torch.float64))), bt)
    close(paid("bt_focal", gamma=0.0), bt)
    close(paid("bt_centered", c=0.0), bt)
    close(paid("bt_scaled", replace(PAIRS, strength=torch.ones(24, dtype=torch.float64)), scale=1.0), bt)


def test_the_baselines_are_their_formulas() -> None:
    """Section 2.1, away from the golden values."""
    close(paid("bt_margin", scale=0.7), sp(0.7 * STRENGTH - GAP))
    close(paid("bt_smooth", eps=0.1), 0.9 * sp(-GAP) + 0.1 * sp(GAP))
    close(paid("bt_scaled", scale=2.0), 2.0 * STRENGTH * sp(-GAP))
    fade = 1.0 - 2.0 * (sig(GAP) - 0.5).clamp(min=0.0)
    close(paid("bt_focal", gamma=2.0), fade**2 * sp(-GAP))
    close(paid("bt_focal", gamma=0.5), fade**0.5 * sp(-GAP))
    close(paid("bt_centered", c=0.01), sp(-GAP) + 0.01 * HEAD.sum(1) ** 2)


def test_a_pair_ranked_wrongly_is_not_faded_by_focal() -> None:
    """At d <= 0 plain BT, value and slope."""
    wrong = GAP <= 0
    assert 3 < wrong.sum() < 21
    close(paid("bt_focal", gamma=2.0)[wrong], paid("bt")[wrong])
    assert (paid("bt_focal", gamma=2.0)[~wrong] < paid("bt")[~wrong]).all()
    close(slope("bt_focal", (-2.0,), gamma=2.0)(), slope("bt", (-2.0,))())


def test_where_each_baseline_is_least() -> None:
    """A margin moves no minimum into reach, nor does a scale; a soft label does; centring does not touch the gap's."""
    for recipe, options, label in (
        ("bt", {}, {}),
        ("bt_margin", {"scale": 1.0}, {"strength": [2.0]}),
        ("bt_scaled", {"scale": 1.0}, {"strength": [3.0]}),
    ):
        near, far = (paid(recipe, heads(d, **label), **options).item() for d in (10.0, 30.0))
        assert far < near
        assert mk.recipe(recipe, **options).target_gap(heads(0.0, **label).labels, 1).item() == math.inf
    best = math.log(9.0)
    values = [paid("bt_smooth", heads(best + step), eps=0.1).item() for step in (-0.01, 0.0, 0.01)]
    assert min(values) == values[1]
    values = [paid("mmpo_rm", heads(1.1 + step, strength=[1.0]), gamma=1.1).item() for step in (-0.01, 0.0, 0.01)]
    assert min(values) == values[1]


@pytest.mark.parametrize(
    ("recipe", "options", "invariant"),
    [
        ("bt", {}, True),
        ("bt_margin", {"scale": 0.7}, True),
        ("bt_smooth", {"eps": 0.1}, True),
        ("bt_scaled", {"scale": 1.0}, True),
        ("bt_focal", {"gamma": 2.0}, True),
        ("mmpo_rm", {"gamma": 1.1}, True),
        ("bt_centered", {"c": 0.01}, False),
    ],
)
def test_all_but_centring_are_invariant_to_a_constant_on_the_rewards(
    recipe: str, options: dict[str, object], invariant: bool
) -> None:
    """Of r -> r + const, centring alone takes notice."""
    before, after = paid(recipe, **options), paid(recipe, replace(PAIRS, head=HEAD + 3.3), **options)
    assert torch.allclose(before, after, rtol=0, atol=1e-10) == invariant


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("bt", {}),
        ("bt_margin", {"scale": 0.7}),
        ("bt_smooth", {"eps": 0.1}),
        ("bt_scaled", {"scale": 1.0}),
        ("bt_focal", {"gamma": 2.0}),
        ("bt_centered", {"c": 0.01}),
        ("mmpo_rm", {"gamma": 1.1}),
    ],
)
def test_a_batch_is_the_batches_of_one(recipe: str, options: dict[str, object]) -> None:
    """The shape trap: [B, 1] against [B] would weigh every pair by the mean margin."""
    alone = [paid(recipe, PairScores(head=HEAD[i : i + 1], strength=STRENGTH[i : i + 1]), **options) for i in range(24)]
    close(torch.cat(alone), paid(recipe, **options))


def test_regression_is_the_squared_distance_over_the_graded_responses() -> None:
    """(r - scale * grade)^2; a response without a grade counts for nothing and gets no gradient."""
    head = f64([0.3, -1.0, 2.0]).requires_grad_(True)
    scores = SequenceScores(head=head, grade=f64([4.0, math.nan, 1.0]))
    found = mk.recipe("regression", scale=0.5)(scores)
    assert found.tolist() == pytest.approx([1.7**2, 0.0, 1.5**2], rel=1e-12)
    (gradient,) = torch.autograd.grad(found.sum(), head)
    assert gradient.tolist() == pytest.approx([-3.4, 0.0, 3.0], rel=1e-12)
