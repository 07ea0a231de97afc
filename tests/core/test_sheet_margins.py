"""What the sheet on margins says of MMPO, gamma-PO and AMaPO beyond numbers: limits, identities, bounds, guards."""

import math
from dataclasses import replace

import pytest
import torch
from sheets import close, f64, heads, log_ratio_gap, random_pairs, seen, sig, slope, sp, spread, token_gap, with_gaps
from torch import Tensor

import marginkit as mk
from marginkit.core.adaptive import amapo, gamma_po
from marginkit.core.tensors import Labels, PairScores, Population

PAIRS = random_pairs()
R = f64([-2.0, -0.5, 0.0, 1.0, 3.0])
SHIPPED = [(4.0, 10.0), (3.0, 3.0), (5.0, 20.0), (0.375, 10.0)]
SOLVERS = ["released", "fixed_point"]


def margins(r: Tensor, gamma: float, tau: float, solver: str = "released", *, centred: bool = False) -> Tensor:
    """gamma-PO's margins with the pool r."""
    return gamma_po(Labels(), r, seen(r), gamma=gamma, tau=tau, solver=solver, centred=centred).margin


def behind(gaps: Tensor, beta: float = 2.0, form: str = "released", population: Tensor | None = None) -> Tensor:
    """AMaPO's margins for gaps D, among themselves or a population."""
    others = gaps if population is None else population
    return amapo(Labels(), beta * gaps, seen(beta * others), beta=beta, form=form).margin


# -------------------------------------------------------------------------------------------------- 1, MMPO and RPO


def test_rpo_backward_kl_has_the_gradient_of_mmpo() -> None:
    """Exactly: the two differ by the entropy of the label, a constant."""
    logp = PAIRS.logp.clone().requires_grad_(True)
    scores = replace(PAIRS, logp=logp)
    kl = mk.recipe("rpo_backward_kl", beta=0.1, eta=0.4)(scores)
    mmpo = mk.recipe("mmpo", beta=0.1, gamma=0.4)(scores)
    (of_kl,), (of_mmpo,) = (torch.autograd.grad(found.sum(), logp) for found in (kl, mmpo))
    close(of_kl, of_mmpo, within=1e-12)
    p = sig(0.4 * (PAIRS.grade[:, 0] - PAIRS.grade[:, 1]))
    close(mmpo - kl, -p * torch.log(p) - (1.0 - p) * torch.log(1.0 - p))


@pytest.mark.parametrize("recipe", ["rpo_squared", "rpo_backward_kl", "rpo_forward_kl"])
def test_rpo_is_0_exactly_where_the_gap_is_the_grades(recipe: str) -> None:
    """Where beta * D = eta * grade gap; a tie asks for a gap of 0, and is kept."""
    grade = f64([[4.0, 1.0], [2.0, 2.0], [9.0, 8.5]])
    wanted = 0.4 * (grade[:, 0] - grade[:, 1]) / 0.1
    tie = torch.tensor([False, True, False])
    for moved in (-1.0, 0.0, 1.0):
        leaf = (wanted + moved).requires_grad_(True)
        scores = replace(with_gaps(leaf), grade=grade, tie=tie)
        found = mk.recipe(recipe, beta=0.1, eta=0.4)(scores)
        (gradient,) = torch.autograd.grad(found.sum(), leaf)
        if moved:
            assert found.min() > 1e-4
            assert (torch.sign(gradient) == math.copysign(1.0, moved)).all()
        else:
            assert found.abs().max() < 1e-15
            assert gradient.abs().max() < 1e-12


def test_the_three_losses_of_rpo_are_their_formulas() -> None:
    """Squared logits; KL(target || model); KL(model || target)."""
    q, p = sig(0.1 * log_ratio_gap(PAIRS)), sig(0.4 * (PAIRS.grade[:, 0] - PAIRS.grade[:, 1]))
    found = {
        name: mk.recipe(name, beta=0.1, eta=0.4)(PAIRS) for name in ("rpo_squared", "rpo_backward_kl", "rpo_forward_kl")
    }
    close(found["rpo_squared"], (torch.logit(q) - torch.logit(p)) ** 2, within=1e-9)
    close(found["rpo_backward_kl"], p * torch.log(p / q) + (1 - p) * torch.log((1 - p) / (1 - q)))
    close(found["rpo_forward_kl"], q * torch.log(q / p) + (1 - q) * torch.log((1 - q) / (1 - p)))


def test_a_float32_label_saturates_to_the_hard_one() -> None:
    """A gamma * m beyond 17.3: p is 1 in float32, which is DPO and harmless."""
    pair = with_gaps(torch.tensor([3.0, 3.0], dtype=torch.float32))
    pair = replace(pair, strength=torch.tensor([17.5, 15.0]))
    made = mk.recipe("mmpo", beta=0.1, gamma=1.0).evaluate(pair).target
    assert (made.prob == 1.0).tolist() == [True, False]


# ----------------------------------------------------------------------------------------------------- 2, gamma-PO


@pytest.mark.parametrize(("gamma", "tau"), SHIPPED)
def test_the_released_steps_reach_the_fixed_point(gamma: float, tau: float) -> None:
    """To 5 decimals at the shipped settings; p_i ~ exp(-(gamma / tau) sigmoid(margin_i - r_i))."""
    fixed = margins(R, gamma, tau, "fixed_point")
    close(margins(R, gamma, tau), fixed, within=5e-6)
    share = torch.exp(-(gamma / tau) * sig(fixed - R))
    close(fixed, gamma * 5.0 * share / share.sum(), within=1e-9)


def test_a_small_tau_is_where_the_released_steps_stop_short() -> None:
    """Tau .1: another answer than the fixed point's by more than a thousandth."""
    assert (margins(R, 4.0, 0.1) - margins(R, 4.0, 0.1, "fixed_point")).abs().max() > 1e-3


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("gamma", "tau"), [*SHIPPED, (4.0, 0.1)])
def test_margins_average_to_gamma_keep_the_order_and_their_bounds(gamma: float, tau: float, solver: str) -> None:
    """Mean over the pool gamma0; increasing in r; within gamma0 * exp(+-gamma0 / tau)."""
    for r in (R, spread(64, seed=3, low=-8.0, high=8.0)):
        found = margins(r, gamma, tau, solver)
        assert found.mean().item() == pytest.approx(gamma, rel=1e-9)
        assert (found[r.argsort()].diff() > 0).all()
        assert found.min() >= gamma * math.exp(-gamma / tau) - 1e-12
        assert found.max() <= gamma * math.exp(gamma / tau) + 1e-12
        assert found.max() - found.min() > 1e-3


@pytest.mark.parametrize("solver", SOLVERS)
def test_where_gamma_po_has_nothing_to_adapt_every_margin_is_gamma(solver: str) -> None:
    """Equal gaps; a tau of 1e6; gamma 0; an empty population."""
    close(margins(torch.full((6,), 1.7, dtype=torch.float64), 4.0, 10.0, solver), f64([4.0] * 6))
    close(margins(R, 4.0, 1e6, solver), f64([4.0] * 5), within=1e-5)
    assert margins(R, 0.0, 10.0, solver).tolist() == [0.0] * 5
    alone = gamma_po(Labels(), R, seen(R[:0]), gamma=4.0, tau=10.0, solver=solver, centred=False).margin
    assert alone.tolist() == [4.0] * 5


def test_a_large_tau_is_simpo_and_dpo() -> None:
    """At tau 1e6 gamma-SimPO is SimPO, gamma-DPO is DPO; at tau 3 neither is."""
    for method, plain, options in (
        ("gamma_simpo", "simpo", {"beta": 10.0, "gamma": 3.0}),
        ("gamma_dpo", "dpo", {"beta": 0.1}),
    ):
        wanted = mk.recipe(plain, **options)(PAIRS)
        close(mk.recipe(method, **{"gamma": 3.0} | options, tau=1e6)(PAIRS), wanted, within=1e-4)
        assert (mk.recipe(method, **{"gamma": 3.0} | options, tau=3.0)(PAIRS) - wanted).abs().max() > 1e-2


def test_the_margins_of_gamma_dpo_are_those_of_gamma_simpo_less_gamma() -> None:
    """Centred: the pool's mean offset is 0."""
    close(margins(R, 3.0, 3.0, centred=True), margins(R, 3.0, 3.0) - 3.0, within=1e-14)
    r = 0.1 * log_ratio_gap(PAIRS)
    found = mk.recipe("gamma_dpo", beta=0.1, gamma=3.0, tau=3.0).evaluate(PAIRS, seen(r))
    close(found.loss, sp(margins(r, 3.0, 3.0) - 3.0 - r), within=1e-9)
    d = 2.0 * token_gap(PAIRS)
    found = mk.recipe("gamma_simpo", beta=2.0, gamma=3.0, tau=3.0).evaluate(PAIRS, seen(d))
    close(found.loss, sp(margins(d, 3.0, 3.0) - d), within=1e-9)


def test_confident_pairs_are_pushed_harder_than_by_simpo_and_others_less() -> None:
    """The slope is -sigmoid(margin - r): more on large r, less on ambiguous or mis-ranked pairs."""
    more = (
        slope("simpo", (-2.0, -0.5, 0.0, 1.0, 3.0), beta=1.0, gamma=4.0)()
        - slope("gamma_simpo", (-2.0, -0.5, 0.0, 1.0, 3.0), beta=1.0, gamma=4.0, tau=10.0)()
    )
    assert (more > 0).tolist() == [False, False, False, False, True]


def test_the_queue_holds_2048_gaps_and_stays_as_it_is_in_evaluation() -> None:
    """It begins with 8 draws; the pool draws from it at most 256 gaps, those of now included."""
    loss = mk.recipe("gamma_simpo")
    assert len(loss.state_dict()["past"]) == 8
    for _ in range(3):
        loss(PAIRS)
    before = loss.state_dict()["past"].clone()
    close(before[-40:], loss.seen(PAIRS).gaps, within=0.0)
    assert len(before) == 8 + 3 * 40
    loss.eval()(PAIRS)
    loss.train()
    with torch.no_grad():
        loss(PAIRS)
    assert torch.equal(loss.state_dict()["past"], before)
    for _ in range(60):
        loss(PAIRS)
    assert len(loss.state_dict()["past"]) == 2048


def test_the_pool_is_the_pairs_of_now_filled_up_from_the_queue() -> None:
    """The pool's mean margin is gamma, not that of the batch; what is drawn depends on the seed alone."""
    past = spread(2048, seed=5, low=-1.0, high=12.0)
    drawn = {}
    for size in (5, 256):
        generator = torch.Generator().manual_seed(1)
        population = seen(R, past=past, generator=generator)
        drawn[size] = gamma_po(Labels(), R, population, gamma=4.0, tau=1.0, pool=size, centred=False).margin
    close(drawn[5], margins(R, 4.0, 1.0))
    assert (drawn[256].mean() - 4.0).abs() > 0.1
    generator = torch.Generator().manual_seed(1)
    again = gamma_po(
        Labels(), R, seen(R, past=past, generator=generator), gamma=4.0, tau=1.0, pool=256, centred=False
    ).margin
    assert torch.equal(again, drawn[256])


# ------------------------------------------------------------------------------------------------------- 3, AMaPO


def test_pairs_ahead_of_the_mean_have_no_margin() -> None:
    """D >= mean: L = softplus(-beta D), SimPO with gamma 0; below it the margin is above 0."""
    d = token_gap(PAIRS)
    found = mk.recipe("amapo", beta=2.0)(PAIRS)
    ahead = d >= d.mean()
    close(found[ahead], sp(-2.0 * d[ahead]))
    assert (found[~ahead] > sp(-2.0 * d[~ahead]) + 1e-6).all()
    close(found[ahead], mk.recipe("simpo", beta=2.0, gamma=0.0)(PAIRS)[ahead])


def test_the_margin_of_a_pair_just_below_the_mean_is_beta() -> None:
    """Because exp(0) = 1; then a jump to 0 at the mean."""
    d = f64([0.5 - 1e-9, 0.5, 0.5 + 1e-9])
    close(behind(d, beta=2.5), f64([2.5 * math.exp(0.5), 0.0, 0.0]), within=1e-6)
    near, at = behind(f64([0.5 - 1e-12, 0.5]), beta=2.5, population=f64([0.0, 1.0])).tolist()
    assert near == pytest.approx(2.5, abs=1e-9)
    assert at == 0.0


@pytest.mark.parametrize("form", ["released", "paper"])
@pytest.mark.parametrize("beta", [2.0, 3.0])
def test_the_forms_of_amapo_are_their_formulas(form: str, beta: float) -> None:
    """Released: D < mean and exponent z * mean; paper: z * mean > 0 and exponent beta * z * mean."""
    for moved in (-2.0, 0.0, 1.5):
        d = spread(16, seed=9, low=-1.0, high=1.0) + moved
        z = (d.mean() - d) / d.std()
        if form == "released":
            wanted = torch.where(d.mean() > d, beta * torch.exp(z * d.mean()), 0 * d)
        else:
            power = beta * z * d.mean()
            wanted = torch.where(power > 0, beta * torch.exp(power), 0 * d)
        close(behind(d, beta, form), wanted)


def test_the_slope_of_amapo_is_bounded_by_beta() -> None:
    """-beta * sigmoid(margin - beta D), whatever the margin."""
    d = (-3.0, -0.5, 0.0, 0.5, 40.0)
    found = slope("amapo", d, beta=2.0)()
    close(found, -2.0 * sig(behind(f64(d)) - 2.0 * f64(d)))
    assert found.abs().max() <= 2.0


@pytest.mark.parametrize("form", ["released", "paper"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_one_pair_and_equal_gaps_have_no_margin(form: str, dtype: torch.dtype) -> None:
    """A spread of nothing: 0, not NaN, for levels that no binary number hits too."""
    assert behind(torch.tensor([0.3], dtype=dtype), form=form).tolist() == [0.0]
    for level, size in ((0.0, 4), (0.1, 7), (-0.7, 33), (1e4 / 3, 6), (-1e-8 / 3, 5)):
        assert behind(torch.full((size,), level, dtype=dtype), beta=2.5, form=form).tolist() == [0.0] * size
    leaf = torch.full((3,), 0.1, dtype=dtype, requires_grad=True)
    found = mk.recipe("amapo", beta=2.0, form=form)(
        PairScores(logp=torch.stack((leaf, 0 * leaf), 1), length=torch.ones(3, 2, dtype=dtype))
    )
    close(torch.autograd.grad(found.sum(), leaf)[0], -2.0 * sig(-2.0 * leaf.detach()), within=1e-6)


@pytest.mark.parametrize("form", ["released", "paper"])
def test_no_exponent_of_amapo_overflows(form: str) -> None:
    """A large pool, one outlier, means of 1e4: margins stay numbers, at most beta * e^20."""
    for d in (
        torch.cat((f64([0.0]), torch.full((4095,), 30.0, dtype=torch.float64))),
        1e4 * spread(64, seed=2),
        1e4 + spread(64, seed=2),
    ):
        for dtype in (torch.float32, torch.float64):
            found = behind(d.to(dtype), form=form)
            assert torch.isfinite(found).all()
            assert found.max() <= 2.0 * math.exp(20.0) * 1.001


def test_amapo_over_two_ranks_needs_the_gaps_of_both() -> None:
    """With the gaps gathered the margins are those of one batch; each half by itself has others."""
    d = spread(16, seed=4)
    together = behind(d)
    gathered = torch.cat((behind(d[:8], population=d), behind(d[8:], population=d)))
    assert torch.equal(gathered, together)
    assert (torch.cat((behind(d[:8]), behind(d[8:]))) - together).abs().max() > 1e-3


def test_soft_labels_of_a_reward_model_see_their_own_pair_only() -> None:
    """A batch of two is the mean of two batches of one: no [B, 1] by [B]."""
    one, other = heads(1.0, prob=[0.6]), heads(2.0, prob=[0.9])
    both = mk.recipe("mmpo_rm")(heads(1.0, 2.0, prob=[0.6, 0.9]))
    close(both, torch.cat((mk.recipe("mmpo_rm")(one), mk.recipe("mmpo_rm")(other))))
    assert both.mean().item() != pytest.approx(0.595095, abs=1e-3)


def test_a_population_is_not_needed_by_methods_that_look_at_no_other_pair() -> None:
    """MMPO gives the same whatever population is handed in."""
    loss = mk.recipe("mmpo", beta=0.1, gamma=0.3)
    close(loss.evaluate(PAIRS, Population(100.0 * PAIRS.logp)).total, loss.evaluate(PAIRS).total)
