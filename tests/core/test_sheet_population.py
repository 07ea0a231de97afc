"""What beta-DPO, alpha-DPO and KTO take from other pairs, and its guards (policy-losses 8 to 10)."""

from dataclasses import replace

import pytest
import torch
from sheets import close, f64, random_pairs, seen, sig, spread, token_gap
from torch import Tensor

import marginkit as mk
from marginkit.core.adaptive import alpha_margin, beta_scale
from marginkit.core.tensors import Labels, PairScores, Population

PAIRS = random_pairs()
AT_START = replace(PAIRS, logp=PAIRS.ref_logp)


def paid(recipe: str, scores: PairScores = PAIRS, **options: object) -> Tensor:
    """The loss of each pair."""
    return mk.recipe(recipe, **options)(scores)


def test_equal_gaps_leave_beta_dpo_and_alpha_dpo_without_a_nan() -> None:
    """An sd of 0 at an exact start: no z-score, the plain beta and the plain margin."""
    chance = Labels(chance=torch.full((4,), 0.5, dtype=torch.float64))
    flat = torch.zeros(4, dtype=torch.float64)
    for population in (seen(flat), seen(flat, mean=f64(0.0), sd=f64(0.0), updates=3)):
        for rho in (0.0, 0.5):
            made = beta_scale(chance, flat, population, beta=0.1, a=0.6, rho=rho)
            assert made.scale.tolist() == [1.0] * 4
        scores = PairScores(
            logp=torch.zeros(4, 2).double(), ref_logp=torch.zeros(4, 2).double(), length=torch.ones(4, 2).double()
        )
        assert alpha_margin(Labels(), flat, population, scores, gamma=1.5, alpha=0.5).margin.tolist() == [1.5] * 4
    for recipe, options in (
        ("beta_dpo", {"beta": 0.1, "a": 0.6, "rho": 0.2}),
        ("alpha_dpo", {"beta": 2.0, "gamma": 1.0, "alpha": 0.5}),
    ):
        loss, logp = mk.recipe(recipe, **options), AT_START.logp.clone().requires_grad_(True)
        for _ in range(2):
            found = loss(replace(AT_START, logp=logp))
            assert torch.isfinite(found).all()
            assert torch.isfinite(torch.autograd.grad(found.sum(), logp)[0]).all()


def test_beta_dpo_keeps_its_beta_above_a_thousandth() -> None:
    """max(1e-3, .): gaps far below the running mean do not make it negative."""
    low = f64([-500.0, -400.0])
    labels = Labels(chance=f64([0.5, 0.5]))
    made = beta_scale(labels, low, seen(low, mean=f64(0.0), sd=f64(1.0), updates=9), beta=1.0, a=0.6, rho=0.0)
    assert made.scale.tolist() == [1e-3, 1e-3]


def test_beta_dpo_draws_int_of_n_times_1_minus_rho_pairs_and_counts_them_for_all() -> None:
    """Kept pairs weigh N / kept, the mean of the batch is that of the kept ones; far pairs go first."""
    found = mk.recipe("beta_dpo", beta=0.1, a=0.0, rho=0.2)
    kept = found(PAIRS)
    assert (kept != 0).sum() == 32
    close(kept[kept != 0], paid("dpo", beta=0.1)[kept != 0] * 40.0 / 32.0)
    gaps = torch.cat((torch.linspace(-1.0, 1.0, 30, dtype=torch.float64), f64([60.0, -60.0] * 5)))
    labels = Labels(chance=PAIRS.chance)
    population = seen(gaps, mean=f64(0.0), sd=f64(1.0), updates=9, chance=PAIRS.chance)
    assert beta_scale(labels, gaps, population, beta=1.0, a=0.0, rho=0.25).keep.tolist() == [True] * 30 + [False] * 10


def test_beta_dpo_draws_pairs_in_proportion_to_a_gaussian_about_the_running_mean() -> None:
    """P ~ exp(-z^2 / 2): how often each of four pairs is the one kept, over 3000 draws."""
    gaps = f64([-1.0, 0.5, 2.0, 3.0])
    draws, often = spread(3000, 4, seed=11, low=0.0, high=1.0), torch.zeros(4, dtype=torch.float64)
    for chance in draws:
        population = seen(gaps, mean=f64(0.5), sd=f64(1.2), updates=9, chance=chance)
        made = beta_scale(Labels(chance=chance), gaps, population, beta=1.0, a=0.0, rho=0.75)
        assert made.keep.sum() == 1
        often += made.keep
    wanted = torch.exp(-0.5 * ((gaps - 0.5) / 1.2) ** 2)
    close(often / 3000.0, wanted / wanted.sum(), within=0.025)


def test_the_population_of_alpha_dpo_is_in_nats_a_token() -> None:
    """G = M - (t_w / n_w - t_l / n_l), whatever beta is."""
    g = token_gap(PAIRS) - token_gap(replace(PAIRS, logp=PAIRS.ref_logp))
    rewards = torch.stack((g, torch.zeros_like(g)), 1)
    for beta in (1.0, 10.0):
        loss = mk.recipe("alpha_dpo", beta=beta, gamma=0.5 * beta, alpha=0.2 * beta)
        found = loss.evaluate(PAIRS, Population(rewards)).target.margin / beta
        close(found, 0.5 + 0.2 * (g - g.mean()) / g.std())
        close(loss.seen(PAIRS).gaps, g)


def test_the_level_of_kto_is_the_mean_of_the_other_half_and_not_below_0() -> None:
    """Chosen are measured from the mean of the rejected, rejected from that of the chosen."""
    for moved in (0.0, 40.0, -40.0):
        scores = replace(PAIRS, logp=PAIRS.logp + moved)
        r = 0.1 * (scores.logp - scores.ref_logp)
        z_w, z_l = r[:, 1].mean().clamp(min=0.0), r[:, 0].mean().clamp(min=0.0)
        close(
            paid("kto_pair", scores, beta=0.1, lam_d=1.3, lam_u=0.7),
            1.3 * sig(z_w - r[:, 0]) + 0.7 * sig(r[:, 1] - z_l),
        )


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_the_beta_of_the_batch_follows_the_mean_of_the_kept_pairs(beta: float) -> None:
    """Beta (1 + a (mean of A over the kept - mu)), A in nats whatever beta is; the pairs left out do not count."""
    gaps = f64([1.0, 2.0, 3.0, 90.0])
    chance = torch.full((4,), 0.5, dtype=torch.float64)
    population = seen(beta * gaps, mean=f64(beta * 1.5), sd=f64(beta * 1.0), updates=9, chance=chance)
    made = beta_scale(Labels(chance=chance), beta * gaps, population, beta=beta, a=0.6, rho=0.25)
    assert made.keep.tolist() == [True, True, True, False]
    close(made.scale, f64([1.0 + 0.6 * (2.0 - 1.5)] * 4))
    close(made.weight, f64([4.0 / 3.0] * 4))


def test_two_gaps_are_a_population_and_one_is_not() -> None:
    """Unbiased sd of two: z = +-1 / sqrt(2); of one there is none, and the margin is the plain one."""
    scores = PairScores(
        logp=f64([[3.0, 0.0], [1.0, 0.0]]), ref_logp=0 * f64([[1.0, 1.0]] * 2), length=f64([[1.0, 1.0]] * 2)
    )
    gap = torch.zeros(2, dtype=torch.float64)
    for gaps, wanted in (([3.0, 1.0], [1.5 + 0.5**1.5, 1.5 - 0.5**1.5]), ([3.0], [1.5, 1.5]), ([], [1.5, 1.5])):
        made = alpha_margin(Labels(), gap, seen(f64(gaps)), scores, gamma=1.5, alpha=0.5)
        close(made.margin, f64(wanted))
