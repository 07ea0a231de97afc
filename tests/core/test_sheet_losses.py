"""What the sheet on policy losses says of them beyond numbers: limits, identities, bounds, and what is refused."""

import math
from dataclasses import replace

import pytest
import torch
from sheets import (
    close,
    f64,
    golden,
    log_ratio_gap,
    rm_weight,
    sig,
    sp,
    token_gap,
    with_gaps,
)
from some_pairs import PAIRS, TAU, ZEROS, paid, swapped

import marginkit as mk
from marginkit.core.scored import madpo_weight, wpo_weight
from marginkit.core.targets import log_grade_margin
from marginkit.core.tensors import Labels, PairScores
from marginkit.errors import BadInput

# ------------------------------------------------------------------------------ methods that meet: section by section


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("cdpo", {"eps": 0.0}),
        ("rdpo", {"eps": 0.0}),
        ("odpo", {"alpha": 0.0}),
        ("r_dpo", {"alpha": 0.0}),
        ("r_dpo", {"alpha": 0.0, "sign": "minus"}),
        ("beta_dpo", {"a": 0.0, "rho": 0.0}),
        ("madpo", {"c_max": 1.0, "c_min": 1.0, "tau": TAU, "lam": 1.0}),
        ("madpo", {"c_max": 1.0 + 1e-13, "c_min": 1.0 - 1e-13, "tau": TAU, "lam": 1.0}),
        ("dpop", {"lam": 0.0}),
    ],
    ids=str,
)
def test_these_are_dpo_where_their_own_term_vanishes(recipe: str, options: dict[str, object]) -> None:
    """And are not where it does not, so that the option is alive."""
    close(paid(recipe, beta=0.1, **options), paid("dpo", beta=0.1), within=1e-11)


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("cdpo", {"eps": 0.1}),
        ("rdpo", {"eps": 0.1}),
        ("odpo", {"alpha": 0.5}),
        ("r_dpo", {"alpha": 0.05}),
        ("beta_dpo", {"a": 0.6, "rho": 0.0}),
        ("beta_dpo", {"a": 0.0, "rho": 0.2}),
        ("madpo", {"c_max": 4.0, "tau": TAU, "lam": 1.0}),
        ("dpop", {"lam": 1.0}),
    ],
    ids=str,
)
def test_these_are_not_dpo_where_it_does_not(recipe: str, options: dict[str, object]) -> None:
    """Each of the options above changes the loss of some pair."""
    assert (paid(recipe, beta=0.1, **options) - paid("dpo", beta=0.1)).abs().max() > 1e-3


def test_odpo_with_a_grade_gap_of_1_and_r_dpo_with_equal_lengths_are_dpo() -> None:
    """The logarithm of 1, and a difference of 0."""
    dpo = paid("dpo", beta=0.1)
    close(paid("odpo", replace(PAIRS, grade=f64([[5.0, 4.0]] * 40)), beta=0.1, alpha=2.0), dpo)
    close(paid("r_dpo", replace(PAIRS, length=torch.full_like(PAIRS.length, 30.0)), beta=0.1, alpha=0.5), dpo)


@pytest.mark.parametrize("clamp", [True, False])
def test_wpo_under_a_uniform_policy_is_dpo(clamp: bool) -> None:
    """Log pi = log sum_v pi(v)^2 = -log |V| for every token: q = 0 and w = 1."""
    uniform = -PAIRS.length * math.log(50000.0)
    scores = replace(PAIRS, logp=uniform, log_collision=uniform)
    close(paid("wpo", scores, beta=0.001, clamp=clamp), paid("dpo", scores, beta=0.001))


def test_alpha_dpo_at_alpha_0_is_simpo() -> None:
    """At gamma = beta * g."""
    close(paid("alpha_dpo", beta=2.5, gamma=1.5, alpha=0.0), paid("simpo", beta=2.5, gamma=1.5))


def test_wpo_without_the_clamp_keeps_the_product() -> None:
    """The weight is exp(q_w + q_l), held at 1 only by the clamp."""
    weight = {clamp: wpo_weight(Labels(), ZEROS, None, PAIRS, clamp=clamp).weight for clamp in (True, False)}
    q = (PAIRS.logp - PAIRS.log_collision) / PAIRS.length
    close(weight[False], torch.exp(q.sum(1)))
    close(weight[True], torch.exp(q.sum(1)).clamp(max=1.0))
    assert weight[False].max() > 1.0


# ---------------------------------------------------------------------------------------------------- 1, MADPO


@pytest.mark.parametrize("c_max", [2.0, 4.0])
@pytest.mark.parametrize("tau", [2.0, TAU])
def test_the_weights_of_h_and_minus_h_share_one_unit(c_max: float, tau: float) -> None:
    """w(h) sigmoid(h) + w(-h) sigmoid(-h) = 1 for |h| < tau; at -tau and below the weight is 1; w(0) = 1."""
    h = torch.linspace(-tau + 1e-9, tau - 1e-9, 101, dtype=torch.float64)
    close(
        rm_weight(c_max, tuple(h.tolist()), tau) * sig(h) + rm_weight(c_max, tuple((-h).tolist()), tau) * sig(-h),
        0 * h + 1,
    )
    assert rm_weight(c_max, (-tau, -tau - 1.0, -50.0, 0.0), tau).tolist() == [1.0] * 4


@pytest.mark.parametrize("c_max", [2.0, 4.0])
@pytest.mark.parametrize("tau", [2.0, TAU])
def test_c_is_1_at_tau(c_max: float, tau: float) -> None:
    """So the weight is 1 at h = tau too, and continuous at h = -tau."""
    close(rm_weight(c_max, (tau, -tau + 1e-12), tau), f64([1.0, 1.0]), within=1e-9)
    assert (rm_weight(c_max, (0.5 * tau, -0.5 * tau), tau) - 1.0).abs().min() > 1e-3


@pytest.mark.parametrize(("c_max", "c_min"), [(1.0, None), (1.0, 0.5), (4.0, 1.0), (1.0, 1.0)])
def test_one_end_of_c_at_1_makes_every_weight_1(c_max: float, c_min: float | None) -> None:
    """K becomes 0, infinite or 0 / 0, and c is 1 everywhere: no error, no NaN."""
    loss = mk.recipe("madpo", beta=0.1, c_max=c_max, c_min=c_min, tau=TAU, lam=1.0)
    assert loss.evaluate(PAIRS).target.weight.tolist() == [1.0] * 40


@pytest.mark.parametrize(("branch", "kept"), [("amplify", "below"), ("dampen", "above")])
def test_a_branch_of_madpo_is_the_whole_on_its_side_of_tau(branch: str, kept: str) -> None:
    """Reconstructed: c kept at 1 or more, or at 1 or less."""
    h = f64([[0.5, 0.0], [0.0, 0.5], [9.0, 0.0], [0.0, 9.0]])
    made = {
        name: madpo_weight(
            Labels(),
            torch.zeros(4, dtype=torch.float64),
            None,
            PairScores(rm_head=h),
            c_max=4.0,
            tau=2.0,
            lam=1.0,
            branch=name,
        ).weight
        for name in ("both", branch)
    }
    inside = torch.tensor([True, True, False, False]) if kept == "below" else torch.tensor([False, False, True, True])
    close(made[branch][inside], made["both"][inside])
    assert made[branch][~inside].tolist() == [1.0, 1.0]
    assert (made["both"][:3] - 1.0).abs().min() > 1e-3


# ------------------------------------------------------------------------------------------------------ 2, BPO


def test_bpo_bounds_dpo_at_half_of_beta_from_above() -> None:
    """sp(-min(a, -b)) >= sp(-(a - b) / 2), equal exactly where a = -b."""
    bound = paid("dpo", beta=0.05)
    found = paid("bpo", beta=0.1, alpha=1.0, f="logistic")
    assert (found - bound).min() > 0
    level = torch.stack((PAIRS.ref_logp[:, 0] + 4.0, PAIRS.ref_logp[:, 1] - 4.0), 1)
    even = replace(PAIRS, logp=level)
    close(paid("bpo", even, beta=0.1, alpha=1.0, f="logistic"), paid("dpo", even, beta=0.05))


def test_the_hinge_of_bpo_is_0_where_both_responses_have_gone_far_enough() -> None:
    """At beta .1, alpha .3: a_w >= 10 nats and a_l <= -33.3 nats, both of them."""
    logp = f64([[10.01, -33.34], [9.99, -33.34], [10.01, -33.32], [9.99, -33.32]])
    found = paid("bpo", PairScores(logp=logp, ref_logp=0 * logp), beta=0.1, alpha=0.3, f="hinge")
    assert (found > 0).tolist() == [False, True, True, True]


# ----------------------------------------------------------------------------------------------------- 3, RePO


@pytest.mark.parametrize("beta", [2.0, 10.0])
def test_simpo_over_beta_is_repo_and_at_most_log_2_over_beta_more(beta: float) -> None:
    """0 <= SimPO(g) / beta - RePO(g) <= log(2) / beta, most of all at M = g."""
    gap = torch.linspace(-3.0, 4.0, 141, dtype=torch.float64)  # 0.5 is one of them
    scores = with_gaps(gap)
    more = paid("simpo", scores, beta=beta, gamma=beta * 0.5) / beta - paid("repo", scores, gamma=0.5)
    assert more.min() >= 0
    assert more.max().item() == pytest.approx(math.log(2.0) / beta, abs=1e-12)
    assert gap[more.argmax()].item() == pytest.approx(0.5, abs=1e-12)


def test_the_hinge_of_simpo_is_beta_times_repo_at_a_margin_1_over_beta_larger() -> None:
    """relu(1 - beta (M - g)) = beta * relu(g + 1 / beta - M)."""
    hinge = mk.compose("per_token", "constant_margin", "hinge", beta=4.0, margin=4.0 * 0.3 + 1.0)
    close(hinge(PAIRS), 4.0 * paid("repo", gamma=0.3 + 0.25))
    close(hinge(PAIRS), torch.relu(1.0 - 4.0 * (token_gap(PAIRS) - 0.3)))


def test_repo_plus_is_simpo_below_its_margin_and_log_2_above() -> None:
    """The floor is log 2."""
    simpo, found = paid("simpo", beta=10.0, gamma=3.0), paid("repo_plus", beta=10.0, gamma=0.3)
    below = token_gap(PAIRS) < 0.3
    assert 5 < below.sum() < 35
    close(found[below], simpo[below])
    close(found[~below], torch.full_like(found[~below], math.log(2.0)))


def test_slic_without_its_regulariser_on_mean_log_probs_is_repo() -> None:
    """With lambda 0 and delta = gamma."""
    means = PairScores(logp=PAIRS.logp / PAIRS.length)
    close(paid("slic", means, delta=0.5, lam=0.0), paid("repo", gamma=0.5))


def test_repo_with_a_schedule_goes_from_one_margin_to_the_other_on_a_line() -> None:
    """1.0 at the start, 0.2 at the end, 0.6 halfway."""
    for progress, gamma in ((0.0, 1.0), (0.5, 0.6), (1.0, 0.2)):
        now = replace(PAIRS, progress=torch.full((40,), progress, dtype=torch.float64))
        close(paid("repo", now, gamma=1.0, gamma_end=0.2), paid("repo", gamma=gamma))


# ------------------------------------------------------------------------------------------- 4 to 7, DPO to Cal-DPO


def test_rdpo_is_unbiased_under_flips() -> None:
    """(1 - eps) rDPO(D) + eps rDPO(-D) = sp(-beta D), the loss of the clean label; cDPO is not."""
    for recipe, unbiased in (("rdpo", True), ("cdpo", False)):
        mean = 0.9 * paid(recipe, beta=0.1, eps=0.1) + 0.1 * paid(recipe, swapped(PAIRS), beta=0.1, eps=0.1)
        assert torch.allclose(mean, paid("dpo", beta=0.1), atol=1e-10) == unbiased


def test_cdpo_is_least_at_the_log_odds_of_its_rate_and_at_least_the_entropy() -> None:
    """Where beta * D = log((1 - eps) / eps)."""
    best = math.log(9.0) / 0.1
    at, *near = paid("cdpo", with_gaps(f64([best, best - 0.1, best + 0.1])), beta=0.1, eps=0.1).tolist()
    assert at == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1), abs=1e-12)
    assert min(near) > at
    assert paid("cdpo", beta=0.1, eps=0.1).min() > at - 1e-12


def test_rdpo_has_no_floor() -> None:
    """Its slope tends to -beta eps / (1 - 2 eps): the loss goes on falling."""
    far, farther = paid("rdpo", with_gaps(f64([5000.0, 6000.0])), beta=0.1, eps=0.1).tolist()
    assert (farther - far) / 1000.0 == pytest.approx(-0.1 * 0.1 / 0.8, rel=1e-9)
    assert far < 0


@pytest.mark.parametrize("recipe", ["ipo", "ipo_mean"])
def test_ipo_is_0_at_1_over_2_tau_and_symmetric_about_it(recipe: str) -> None:
    """At tau .1 the gap wanted is 5 nats: of the sequence, or a token."""
    at, below, above = paid(recipe, with_gaps(f64([5.0, 3.0, 7.0])), tau=0.1).tolist()
    assert at == pytest.approx(0.0, abs=1e-20)
    assert below == pytest.approx(4.0, rel=1e-12)
    assert above == pytest.approx(below, rel=1e-12)


def test_a_margin_of_simpo_only_shifts_the_gap() -> None:
    """SimPO(M, g) = SimPO(M - g, 0); at g 0 and beta 1 it is the logistic loss of M."""
    gap = torch.linspace(-3.0, 3.0, 31, dtype=torch.float64)
    close(
        paid("simpo", with_gaps(gap), beta=2.5, gamma=2.5 * 0.55),
        paid("simpo", with_gaps(gap - 0.55), beta=2.5, gamma=0.0),
    )
    close(paid("simpo", beta=1.0, gamma=0.0), sp(-token_gap(PAIRS)))


def test_the_slope_of_simpo_tends_to_the_step_of_repo() -> None:
    """Its s = sigmoid(beta (gamma - M)) -> 1[M < gamma] as beta grows."""
    gap = f64([0.3, 0.49, 0.51, 0.9]).requires_grad_(True)
    slopes = {}
    for name, options in (("simpo", {"beta": 1e4, "gamma": 0.5e4}), ("repo", {"gamma": 0.5})):
        slopes[name] = torch.autograd.grad(paid(name, with_gaps(gap), **options).sum(), gap)[0]
    close(slopes["simpo"] / 1e4, slopes["repo"])
    assert slopes["repo"].tolist() == [-1.0, -1.0, 0.0, 0.0]


def test_cal_dpo_less_its_squares_is_the_logistic_loss_of_the_log_ratios() -> None:
    """Cal-DPO - kappa * SPPO-hard = sp(-D), with SPPO-hard twice sppo at eta = 1 / beta."""
    rest = paid("cal_dpo", beta=0.01, kappa=0.7) - 0.7 * 2.0 * paid("sppo", eta=100.0)
    close(rest, sp(-log_ratio_gap(PAIRS)), within=1e-8)


def test_the_squares_of_cal_dpo_vanish_at_their_levels() -> None:
    """a_w = 1 / (2 beta), a_l = -1 / (2 beta): nothing but sp(-1 / beta) is left."""
    logp = f64([[5.0, -5.0]])
    found = paid("cal_dpo", PairScores(logp=logp, ref_logp=0 * logp), beta=0.1, kappa=1e6)
    assert found.item() == pytest.approx(math.log1p(math.exp(-10.0)), rel=1e-9)


# ------------------------------------------------------------------------------------------------------------ 9, ODPO


@pytest.mark.parametrize("form", ["gap", "ratio"])
def test_odpo_refuses_reversals_or_leaves_them_out(form: str) -> None:
    """The logarithm of a gap of 0 or below has no value; a tie that is marked is left out."""
    grade = f64([[3.0, 1.0], [2.0, 2.0], [1.0, 2.0], [0.0, 2.0]])
    if form == "ratio":
        grade = f64([[3.0, 1.0], [0.0, 2.0], [1.0, -2.0], [-1.0, -2.0]])
    gap = torch.zeros(4, dtype=torch.float64)
    with pytest.raises(BadInput, match="3 of 4 pairs"):
        log_grade_margin(Labels(grade=grade), gap, None, alpha=1.0, form=form)
    made = log_grade_margin(Labels(grade=grade), gap, None, alpha=1.0, form=form, outside="leave_out")
    assert made.keep.tolist() == [True, False, False, False]
    assert torch.isfinite(made.margin).all()
    tied = Labels(grade=grade[:2], tie=torch.tensor([False, True]))
    assert log_grade_margin(tied, gap[:2], None, alpha=1.0, form=form).keep.tolist() == [True, False]
    logp = torch.zeros(4, 2, dtype=torch.float64).requires_grad_(True)
    scores = PairScores(logp=logp, ref_logp=torch.zeros(4, 2, dtype=torch.float64), grade=grade)
    found = mk.recipe("odpo", beta=0.5, alpha=1.0, form=form, outside="leave_out")(scores)
    assert found[1:].tolist() == [0.0] * 3
    assert torch.autograd.grad(found.sum(), logp)[0][1:].abs().max() == 0.0


def test_the_offset_of_odpo_is_that_of_its_form() -> None:
    """That is alpha * log(gap), negative below 1; alpha * log(ratio)."""
    labels, gap = Labels(grade=f64([[6.0, 2.0], [1.5, 1.0]])), torch.zeros(2, dtype=torch.float64)
    by_gap = log_grade_margin(labels, gap, None, alpha=0.7).margin.tolist()
    by_ratio = log_grade_margin(labels, gap, None, alpha=0.7, form="ratio").margin.tolist()
    assert by_gap == pytest.approx([0.7 * math.log(4.0), 0.7 * math.log(0.5)], rel=1e-12)
    assert by_ratio == pytest.approx([0.7 * math.log(3.0), 0.7 * math.log(1.5)], rel=1e-12)


# ------------------------------------------------------------------------------------------ 11, one-liners


def test_the_one_liners_are_their_formulas() -> None:
    """Section 11: BCO-pair and APO-zero, on A, B, C."""
    a_w, a_l = f64([2.0, -3.0, 0.0]), f64([-6.0, -10.0, 0.0])
    close(paid("bco", golden(), beta=0.1), sp(-0.1 * a_w) + sp(0.1 * a_l))
    close(paid("apo_zero", golden(), beta=0.1), 1.0 - sig(0.1 * a_w) + sig(0.1 * a_l))
    normed = mk.compose("implicit_mean", "none", "logistic", beta=0.1)
    close(normed(golden()), sp(-0.1 * (a_w / f64([20.0, 20.0, 20.0]) - a_l / f64([30.0, 35.0, 30.0]))))
