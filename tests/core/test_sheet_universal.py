"""The universal properties that the sheet on policy losses asks of every method (section 12, (i) to (vi))."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from sheets import close, f64, log_ratio_gap, sig, sp, token_gap
from some_pairs import AT_START, PAIRS, TAU, ZEROS, paid, swapped
from torch import Tensor

import marginkit as mk


def test_at_the_start_every_loss_is_the_constant_that_the_sheet_gives() -> None:
    """Property (i): log 2; 2 log 2 for NCA; w * log 2 for WPO and MADPO; 1 for the pair of KTO."""
    plain = [("dpo", {}), ("cdpo", {"eps": 0.1}), ("rdpo", {"eps": 0.1}), ("dpop", {"lam": 50.0})]
    for recipe, options in (*plain, ("bpo", {"alpha": 0.3, "f": "logistic"})):
        close(paid(recipe, AT_START, beta=0.1, **options), ZEROS + math.log(2.0))
    close(paid("nca", AT_START, beta=0.01), ZEROS + 2.0 * math.log(2.0))
    close(paid("kto_pair", AT_START, beta=0.1), ZEROS + 1.0)
    for recipe, options in (("wpo", {"clamp": True}), ("madpo", {"c_max": 4.0, "tau": TAU, "lam": 1.0})):
        loss = mk.recipe(recipe, beta=0.1, **options)
        weight = loss.evaluate(AT_START).target.weight
        assert weight.std() > 0.01
        close(loss(AT_START), weight * math.log(2.0))


BY_D = {
    "dpo": ({"beta": 0.1}, lambda d: sp(-0.1 * d)),
    "cdpo": ({"beta": 0.1, "eps": 0.2}, lambda d: 0.8 * sp(-0.1 * d) + 0.2 * sp(0.1 * d)),
    "rdpo": ({"beta": 0.1, "eps": 0.2}, lambda d: (0.8 * sp(-0.1 * d) - 0.2 * sp(0.1 * d)) / 0.6),
    "ipo": ({"tau": 0.1}, lambda d: (d - 5.0) ** 2),
    "rso_hinge": ({"beta": 0.1}, lambda d: torch.relu(1.0 - 0.1 * d)),
}
BY_M = {
    "simpo": ({"beta": 2.5, "gamma": 1.375}, lambda m: sp(-2.5 * (m - 0.55))),
    "repo": ({"gamma": 0.5}, lambda m: torch.relu(0.5 - m)),
    "repo_plus": ({"beta": 10.0, "gamma": 0.3}, lambda m: sp(10.0 * torch.relu(0.3 - m))),
}


@pytest.mark.parametrize("recipe", [*BY_D, *BY_M])
def test_swapping_the_responses_turns_the_gap_round(recipe: str) -> None:
    """Property (ii): D -> -D and M -> -M; and the loss is the formula of the sheet on either side."""
    by_d = recipe in BY_D
    options, formula = (BY_D if by_d else BY_M)[recipe]
    gap = log_ratio_gap(PAIRS) if by_d else token_gap(PAIRS)
    close(paid(recipe, **options), formula(gap), within=1e-9)
    close(paid(recipe, swapped(PAIRS), **options), formula(-gap), within=1e-9)


ANCHORED_TO_THE_REFERENCE = [
    ("dpo", {"beta": 0.1}),
    ("cdpo", {"beta": 0.1, "eps": 0.1}),
    ("rdpo", {"beta": 0.1, "eps": 0.1}),
    ("ipo", {"tau": 0.1}),
    ("ipo_mean", {"tau": 0.1}),
    ("rso_hinge", {"beta": 0.1}),
    ("bpo", {"beta": 0.1, "alpha": 0.3}),
    ("dpop", {"beta": 0.1, "lam": 50.0}),
    ("cal_dpo", {"beta": 0.01, "kappa": 0.5}),
    ("kto_pair", {"beta": 0.1}),
    ("nca", {"beta": 0.01}),
    ("bco", {"beta": 0.1}),
    ("apo_zero", {"beta": 0.1}),
    ("sppo", {"eta": 1000.0}),
    ("madpo", {"beta": 0.1, "c_max": 4.0}),
    ("odpo", {"beta": 0.5, "alpha": 1.0}),
    ("r_dpo", {"beta": 0.1, "alpha": 0.05}),
    ("beta_dpo", {"beta": 0.1, "a": 0.6, "rho": 0.0}),
]


@pytest.mark.parametrize(("recipe", "options"), ANCHORED_TO_THE_REFERENCE, ids=str)
@pytest.mark.parametrize("side", [0, 1])
def test_a_constant_on_policy_and_reference_of_one_response_changes_nothing(
    recipe: str, options: dict[str, object], side: int
) -> None:
    """Property (iii); on the policy alone it does change something."""
    moved = torch.zeros(40, 2, dtype=torch.float64)
    moved[:, side] = 17.0 * PAIRS.chance
    before = paid(recipe, **options)
    close(
        paid(recipe, replace(PAIRS, logp=PAIRS.logp + moved, ref_logp=PAIRS.ref_logp + moved), **options),
        before,
        within=1e-8,
    )
    assert (paid(recipe, replace(PAIRS, logp=PAIRS.logp + moved), **options) - before).abs().max() > 1e-3


# ---------------------------------------------------------------------------------------- (iv) the closed-form slopes


def by_gap(slope: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes in (s_w, s_l) of a loss of D."""
    return slope, -slope


def by_token_gap(slope: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes in (s_w, s_l) of a loss of M: divided by n_w and n_l."""
    return slope / N_W, -slope / N_L


N_W, N_L = PAIRS.length[:, 0], PAIRS.length[:, 1]
M_W, M_L = PAIRS.logp[:, 0] / N_W, PAIRS.logp[:, 1] / N_L
M, D = M_W - M_L, log_ratio_gap(PAIRS)
A_W, A_L = (PAIRS.logp - PAIRS.ref_logp).T
ONES = torch.ones_like(D)
H = PAIRS.rm_head[:, 0] - PAIRS.rm_head[:, 1]
GRADE_GAP = PAIRS.grade[:, 0] - PAIRS.grade[:, 1]


def weight_of_madpo() -> Tensor:
    """Section 1, as typeset there, at c_max 4: here |h| < tau for most pairs."""
    c = 0.25 + 3.75 / (1.0 + 4.0 * torch.exp(H.abs() - TAU))
    return torch.where(H > -TAU, sig(c * H) / sig(H), ONES)


def bpo_slope(minus_f: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """(-beta s, 0) where the chosen response binds, (0, alpha beta s) where the rejected does; s = -f'(rho)."""
    binds = A_W < -0.3 * A_L
    s = minus_f(torch.minimum(0.1 * A_W, -0.03 * A_L))
    return torch.where(binds, -0.1 * s, 0 * s), torch.where(binds, 0 * s, 0.03 * s)


def orpo_slopes() -> tuple[Tensor, Tensor]:
    """d/dm_w of sp(-lo) = -sig(-lo) / (1 - e^m_w); the NLL of the chosen beside it."""
    lo = M - (torch.log(1.0 - torch.exp(M_W)) - torch.log(1.0 - torch.exp(M_L)))
    push = 0.1 * sig(-lo)
    return -1.0 / N_W - push / (1.0 - torch.exp(M_W)) / N_W, push / (1.0 - torch.exp(M_L)) / N_L


def alpha_margins() -> Tensor:
    """Section 9, first step from zero: g + alpha (G - mu) / sd, g .6 and alpha .2."""
    g = M - token_gap(replace(PAIRS, logp=PAIRS.ref_logp))
    return 0.6 + 0.2 * (g - 0.1 * g.mean()) / (0.1 * g.std())


def kto_slopes() -> tuple[Tensor, Tensor]:
    """-+ lam beta sig (1 - sig), z0 = .7 nats."""
    up, down = sig(0.1 * (A_W - 0.7)), sig(0.1 * (0.7 - A_L))
    return -1.2 * 0.1 * up * (1.0 - up), 0.8 * 0.1 * down * (1.0 - down)


def amapo_margins() -> Tensor:
    """Section 3.1 of the sheet on margins, beta 2."""
    z = (M.mean() - M) / M.std()
    return torch.where(M.mean() > M, 2.0 * torch.exp(z * M.mean()), 0 * M)


SLOPES: dict[str, tuple[dict[str, object], Callable[[], tuple[Tensor, Tensor]]]] = {
    "dpo": ({"beta": 0.1}, lambda: by_gap(-0.1 * sig(-0.1 * D))),
    "mmpo": ({"beta": 0.1, "gamma": 0.3}, lambda: by_gap(0.1 * (sig(0.1 * D) - sig(0.3 * GRADE_GAP)))),
    "cdpo": ({"beta": 0.1, "eps": 0.1}, lambda: by_gap(0.1 * (sig(0.1 * D) - 0.9))),
    "rdpo": (
        {"beta": 0.1, "eps": 0.1},
        lambda: by_gap(-0.1 * (0.9 * sig(-0.1 * D) + 0.1 * sig(0.1 * D)) / 0.8),
    ),
    "ipo": ({"tau": 0.1}, lambda: by_gap(2.0 * (D - 5.0))),
    "ipo_mean": ({"tau": 0.1}, lambda: by_token_gap(2.0 * (A_W / N_W - A_L / N_L - 5.0))),
    "slic": (
        {"delta": 1.0, "lam": 0.1},
        lambda: (
            -((PAIRS.logp[:, 0] - PAIRS.logp[:, 1]) < 1.0).double() - 0.1,
            ((PAIRS.logp[:, 0] - PAIRS.logp[:, 1]) < 1.0).double(),
        ),
    ),
    "rso_hinge": ({"beta": 0.1}, lambda: by_gap(-0.1 * (0.1 * D < 1.0).double())),
    "simpo": ({"beta": 2.5, "gamma": 1.375}, lambda: by_token_gap(-2.5 * sig(2.5 * (0.55 - M)))),
    "repo": ({"gamma": 0.5}, lambda: by_token_gap(-(M < 0.5).double())),
    "repo_plus": (
        {"beta": 10.0, "gamma": 0.3},
        lambda: by_token_gap(-10.0 * sig(10.0 * (0.3 - M)) * (M < 0.3).double()),
    ),
    "amapo": ({"beta": 2.0}, lambda: by_token_gap(-2.0 * sig(amapo_margins() - 2.0 * M))),
    "bpo": ({"beta": 0.1, "alpha": 0.3, "f": "logistic"}, lambda: bpo_slope(lambda rho: sig(-rho))),
    "bpo hinge": ({"beta": 0.1, "alpha": 0.3, "f": "hinge"}, lambda: bpo_slope(lambda rho: (rho < 1.0).double())),
    "bpo squared": ({"beta": 0.1, "alpha": 0.3, "f": "squared"}, lambda: bpo_slope(lambda rho: 2.0 * (1.0 - rho))),
    "bpo exponential": (
        {"beta": 0.1, "alpha": 0.3, "f": "exponential"},
        lambda: bpo_slope(lambda rho: torch.exp(-rho)),
    ),
    "bpo savage": (
        {"beta": 0.1, "alpha": 0.3, "f": "savage"},
        lambda: bpo_slope(lambda rho: 2.0 * torch.exp(rho) / (1.0 + torch.exp(rho)) ** 3),
    ),
    "cal_dpo": (
        {"beta": 0.01, "kappa": 0.7},
        lambda: (-sig(-D) + 1.4 * (A_W - 50.0), sig(-D) + 1.4 * (A_L + 50.0)),
    ),
    "odpo": ({"beta": 0.5, "alpha": 0.7}, lambda: by_gap(-0.5 * sig(0.7 * torch.log(GRADE_GAP) - 0.5 * D))),
    "r_dpo": ({"beta": 0.1, "alpha": 0.05}, lambda: by_gap(-0.1 * sig(-0.1 * D - 0.05 * (N_W - N_L)))),
    "wpo": (
        {"beta": 0.1, "clamp": True},
        lambda: by_gap(
            -0.1 * sig(-0.1 * D) * torch.exp(((PAIRS.logp - PAIRS.log_collision) / PAIRS.length).sum(1)).clamp(max=1.0)
        ),
    ),
    "madpo": (
        {"beta": 0.1, "c_max": 4.0, "tau": TAU, "lam": 1.0},
        lambda: by_gap(-0.1 * weight_of_madpo() * sig(-0.1 * D)),
    ),
    "beta_dpo": (
        {"beta": 0.1, "a": 0.2, "rho": 0.0},
        lambda: by_gap(-used_beta() * sig(-used_beta() * D)),
    ),
    "alpha_dpo": (
        {"beta": 2.5, "gamma": 1.5, "alpha": 0.5},
        lambda: by_token_gap(-2.5 * sig(2.5 * (alpha_margins() - M))),
    ),
    "kto_pair": ({"beta": 0.1, "lam_d": 1.2, "lam_u": 0.8, "z0": 0.7}, kto_slopes),
    "orpo": ({"lam": 0.1}, orpo_slopes),
    "cpo": (
        {"beta": 0.1, "lam": 0.3},
        lambda: (
            -0.1 * sig(-0.1 * (PAIRS.logp[:, 0] - PAIRS.logp[:, 1])) - 0.3,
            0.1 * sig(-0.1 * (PAIRS.logp[:, 0] - PAIRS.logp[:, 1])),
        ),
    ),
    "sppo": ({"eta": 1000.0}, lambda: (A_W - 500.0, A_L + 500.0)),
    "nca": (
        {"beta": 0.1},
        lambda: (0.1 * (0.5 * sig(0.1 * A_W) - sig(-0.1 * A_W)), 0.05 * sig(0.1 * A_L)),
    ),
    "bco": ({"beta": 0.1}, lambda: (-0.1 * sig(-0.1 * A_W), 0.1 * sig(0.1 * A_L))),
    "apo_zero": (
        {"beta": 0.1},
        lambda: (-0.1 * sig(0.1 * A_W) * sig(-0.1 * A_W), 0.1 * sig(0.1 * A_L) * sig(-0.1 * A_L)),
    ),
    "dpop": (
        {"beta": 0.1, "lam": 3.0},
        lambda: (
            -0.1 * sig(-0.1 * (D - 3.0 * torch.relu(-A_W))) * (1.0 + 3.0 * (A_W < 0).double()),
            0.1 * sig(-0.1 * (D - 3.0 * torch.relu(-A_W))),
        ),
    ),
}


def used_beta() -> Tensor:
    """beta-DPO's beta at a first step, beta 0.1 and a 0.2."""
    return (0.1 * (1.0 + 0.2 * (D.mean() - 0.1 * D.mean()))).clamp(min=1e-3)


@pytest.mark.parametrize("case", SLOPES)
def test_autograd_gives_the_slope_that_the_sheet_derives(case: str) -> None:
    """Of the chosen and of the rejected log-prob; margins, weights and scales count as constants."""
    options, wanted = SLOPES[case]
    logp = PAIRS.logp.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(paid(case.split()[0], replace(PAIRS, logp=logp), **options).sum(), logp)
    close(gradient, torch.stack(wanted(), 1), within=1e-9)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("alpha", [1.0, 0.3])
@pytest.mark.parametrize("f", ["hinge", "logistic", "squared", "exponential", "truncated", "savage"])
def test_bpo_moves_exactly_one_of_the_two_responses(alpha: float, f: str) -> None:
    """Off the tie; at the start, which is a tie, each gets half."""
    logp = (PAIRS.ref_logp + (PAIRS.logp - PAIRS.ref_logp) / 3.0).requires_grad_(True)  # rho < 1: no plateau
    (gradient,) = torch.autograd.grad(paid("bpo", replace(PAIRS, logp=logp), beta=0.1, alpha=alpha, f=f).sum(), logp)
    assert ((gradient != 0).sum(1) == 1).all()
    a_w, a_l = (logp - PAIRS.ref_logp).T
    assert ((gradient[:, 0] != 0) == (a_w < -alpha * a_l)).all()
    assert ((a_w < 0) & (a_l < 0)).sum() > 3
    assert (gradient[(a_w < 0) & (a_l < 0), 0] < 0).all()
    start = PAIRS.ref_logp.clone().requires_grad_(True)
    (tied,) = torch.autograd.grad(paid("bpo", replace(AT_START, logp=start), beta=0.1, alpha=alpha, f=f).sum(), start)
    s = {"hinge": 1.0, "logistic": 0.5, "squared": 2.0, "exponential": 1.0, "truncated": 2.0, "savage": 0.25}[f]
    close(tied, f64([[-0.1 * s / 2, alpha * 0.1 * s / 2]] * 40))
