"""Numbers to the end of the scale, and no gradient where there is to be none (policy-losses 12, (v) and (vi))."""

import math
from dataclasses import replace

import pytest
import torch
from sheets import close, f64, random_pairs
from torch import Tensor

import marginkit as mk
from marginkit.core.rewards import log_odds
from marginkit.core.tensors import PairScores, Population, Rewards, SequenceScores, Target
from marginkit.registry import load_recipe, recipe_names

TAU = math.log(999.0)
PAIRS = random_pairs()
AT_START = replace(PAIRS, logp=PAIRS.ref_logp)


def paid(recipe: str, scores: PairScores = PAIRS, **options: object) -> Tensor:
    """The loss of each pair."""
    return mk.recipe(recipe, **options)(scores)


# ------------------------------------------------------------------------------------------ (v) finite up to 1e4

NEEDED = {"mmpo": {"gamma": 0.3}, "mmpo_rm": {"gamma": 0.3}}
PAIRED = [name for name in recipe_names() if load_recipe(name).kind != "sft" and name != "regression"]


def extremes(dtype: torch.dtype) -> PairScores:
    """Every combination of log-probs, heads and gaps of the reward model from 0 to +-1e4."""
    levels = torch.tensor([-1e4, -40.0, 0.0, 1.0, 1e4], dtype=dtype)
    grid = torch.cartesian_prod(levels, levels)
    rows = len(grid)
    return PairScores(
        logp=grid,
        ref_logp=torch.zeros_like(grid),
        length=torch.tensor([1.0, 30.0], dtype=dtype).repeat(rows, 1),
        head=grid.clone(),
        hidden=torch.ones(rows, 2, 4, dtype=dtype),
        rm_head=grid.flip(0),
        log_collision=grid.roll(7, 0),
        grade=torch.tensor([9.0, 1.0], dtype=dtype).repeat(rows, 1),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("recipe", PAIRED)
def test_loss_and_gradient_are_numbers_for_inputs_up_to_1e4(recipe: str, dtype: torch.dtype) -> None:
    """For every recipe with its own defaults, in one batch and pair by pair; exponential BPO is the exception."""
    scores = extremes(dtype)
    for one in (scores, *(rows(scores, i) for i in range(25))):
        leaf = {name: getattr(one, name).clone().requires_grad_(True) for name in ("logp", "head", "hidden")}
        loss = mk.recipe(recipe, **NEEDED.get(recipe, {}))
        found = loss(replace(one, **leaf))
        assert torch.isfinite(found).all(), (recipe, found.tolist())
        for name, gradient in zip(
            leaf, torch.autograd.grad(found.sum(), tuple(leaf.values()), allow_unused=True), strict=True
        ):
            assert gradient is None or torch.isfinite(gradient).all(), (recipe, name)


def rows(scores: PairScores, i: int) -> PairScores:
    """Pair i alone."""
    columns = ("logp", "ref_logp", "length", "head", "hidden", "rm_head", "log_collision", "grade")
    return PairScores(**{name: getattr(scores, name)[i : i + 1] for name in columns})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_wpo_without_its_clamp_is_finite_too(dtype: torch.dtype) -> None:
    """An exponent of 1e4 would be an infinite weight."""
    logp = extremes(dtype).logp.clone().requires_grad_(True)
    found = paid("wpo", replace(extremes(dtype), logp=logp), clamp=False)
    assert torch.isfinite(found).all()
    assert torch.isfinite(torch.autograd.grad(found.sum(), logp)[0]).all()


@pytest.mark.parametrize("f", ["hinge", "logistic", "squared", "truncated", "savage"])
def test_the_shapes_of_bpo_are_finite_but_for_the_exponential(f: str) -> None:
    """Savage's too, which the released exp is not."""
    logp = f64([[-1e4, 1e4], [1e4, -1e4], [-1e4, -1e4]]).requires_grad_(True)
    scores = PairScores(logp=logp, ref_logp=torch.zeros(3, 2, dtype=torch.float64))
    found = paid("bpo", scores, beta=1.0, alpha=1.0, f=f)
    assert torch.isfinite(found).all()
    assert torch.isfinite(torch.autograd.grad(found.sum(), logp)[0]).all()
    assert paid("bpo", scores, beta=1.0, alpha=1.0, f="exponential").isinf().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_certain_response_has_finite_odds(dtype: torch.dtype) -> None:
    """ORPO as m -> 0: the slope -sig(-lo) / (1 - e^m) explodes in the released code."""
    mean = torch.tensor([[-1e-3, -2.0], [-1e-12, -2.0], [0.0, -2.0], [-2.0, 0.0], [0.0, 0.0]], dtype=dtype)
    logp = mean.clone().requires_grad_(True)
    found = paid("orpo", PairScores(logp=logp, length=torch.ones_like(mean)), lam=0.1)
    assert torch.isfinite(found).all()
    assert torch.isfinite(torch.autograd.grad(found.sum(), logp)[0]).all()
    lo = math.log(math.exp(-1e-3) / -math.expm1(-1e-3)) - math.log(math.exp(-2.0) / (1.0 - math.exp(-2.0)))
    assert found[0].item() == pytest.approx(1e-3 + 0.1 * math.log1p(math.exp(-lo)), rel=1e-4)


def test_odds_keep_their_digits_near_certainty_and_far_from_it() -> None:
    """Log-odds m - log(1 - e^m), by expm1 near 0: the plain form loses half of them at 1e-9."""
    mean = f64([-1e-12, -1e-9, -0.5, -0.7, -3.0, -700.0])
    found = log_odds(SequenceScores(logp=mean, length=torch.ones_like(mean))).value
    close(found, f64([m - math.log(-math.expm1(m)) for m in mean.tolist()]), within=1e-13)


@pytest.mark.parametrize("recipe", ["simpo", "repo", "repo_plus", "orpo", "amapo", "ipo_mean"])
def test_an_empty_response_is_no_0_over_0(recipe: str) -> None:
    """The released code divides by its number of tokens."""
    logp = f64([[-40.0, 0.0], [-40.0, -60.0]]).requires_grad_(True)
    scores = PairScores(logp=logp, ref_logp=0 * logp.detach(), length=f64([[20.0, 0.0], [20.0, 30.0]]))
    found = paid(recipe, scores)
    assert torch.isfinite(found).all()
    assert torch.isfinite(torch.autograd.grad(found.sum(), logp)[0]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_far_disagreement_of_the_reward_model_is_no_inf_times_0(dtype: torch.dtype) -> None:
    """At h = -1e4 sigmoid(h) underflows: the weight is 1 and every gradient a number."""
    rm_head = torch.tensor([[-1e4, 0.0], [1e4, 0.0], [-90.0, 0.0]], dtype=dtype).requires_grad_(True)
    logp = torch.zeros(3, 2, dtype=dtype).requires_grad_(True)
    scores = PairScores(logp=logp, ref_logp=torch.zeros(3, 2, dtype=dtype), rm_head=rm_head)
    loss = mk.recipe("madpo", beta=0.1, c_max=4.0, tau=TAU, lam=1.0)
    assert loss.evaluate(scores).target.weight.tolist()[::2] == [1.0, 1.0]
    gradient, through = torch.autograd.grad(loss(scores).sum(), (logp, rm_head), allow_unused=True)
    assert torch.isfinite(gradient).all()
    assert through is None


# --------------------------------------------------------------------------------------------- (vi) what is detached

DETACHED: dict[str, tuple[dict[str, object], str]] = {
    "wpo": ({"beta": 0.1, "clamp": True}, "weight"),
    "alpha_dpo": ({"beta": 2.5, "gamma": 1.5, "alpha": 0.5}, "margin"),
    "beta_dpo": ({"beta": 0.1, "a": 0.2, "rho": 0.0}, "scale"),
    "kto_pair": ({"beta": 0.1}, "zero"),
    "gamma_simpo": ({"beta": 2.0, "gamma": 1.0, "tau": 1.0}, "margin"),
    "gamma_dpo": ({"beta": 0.1, "gamma": 1.0, "tau": 1.0}, "margin"),
    "amapo": ({"beta": 2.0}, "margin"),
}


@pytest.mark.parametrize("recipe", DETACHED)
def test_what_is_made_of_the_policy_moves_with_it_and_passes_no_gradient(recipe: str) -> None:
    """The gradient is that of the objective with the target held still; yet moving the policy moves the target."""
    options, column = DETACHED[recipe]
    loss = mk.recipe(recipe, **options)

    def evaluated(logp: Tensor) -> tuple[Tensor, Rewards, Target]:
        scores = replace(PAIRS, logp=logp)
        seen = loss.seen(scores)
        assert not seen.rewards.requires_grad
        running = {"mean": f64(0.0), "sd": f64(1.0), "updates": 9} if recipe == "beta_dpo" else {}
        result = loss.evaluate(scores, Population(seen.rewards, chance=seen.chance, **running))
        assert result.target is not None
        return result.total, result.rewards, result.target

    logp = (PAIRS.logp + 5.0).requires_grad_(True)  # the levels of kto are not below 0
    total, rewards, target = evaluated(logp)
    assert not getattr(target, column).requires_grad
    (found,) = torch.autograd.grad(total.sum(), logp, retain_graph=True)
    still = replace(target, **{column: getattr(target, column).clone()})
    held = still.weight * loss.objective(rewards, still, **loss.objective_options)
    (wanted,) = torch.autograd.grad(held.sum(), logp)
    close(found, wanted)
    moved = getattr(evaluated(PAIRS.logp + 5.0 + 2.0 * PAIRS.chance[:, None] * f64([1.0, -0.5]))[2], column)
    assert (moved - getattr(target, column)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("recipe", "column", "makes"),
    [
        ("madpo", "rm_head", "weight"),
        ("wpo", "log_collision", "weight"),
        ("odpo", "grade", "margin"),
        ("mmpo", "grade", "prob"),
        ("r_dpo", "length", "margin"),
        ("alpha_dpo", "ref_logp", "margin"),
        ("kto_pair", "ref_logp", "zero"),
    ],
)
def test_no_gradient_goes_to_what_a_target_is_made_of(recipe: str, column: str, makes: str) -> None:
    """The column changes the target, and gets no gradient through it."""
    loss = mk.recipe(recipe, **NEEDED.get(recipe, {}))
    pairs = replace(PAIRS, logp=PAIRS.logp + 5.0)
    population = Population(loss.seen(pairs).rewards) if loss.coupled else None
    leaf = getattr(PAIRS, column).clone().requires_grad_(True)
    target = loss.evaluate(replace(pairs, **{column: leaf}), population).target
    assert target is not None
    assert not getattr(target, makes).requires_grad
    other = replace(pairs, **{column: getattr(PAIRS, column) * (1.0 + 0.3 * PAIRS.chance[:, None] * f64([1.0, 2.0]))})
    population = Population(loss.seen(other).rewards) if loss.coupled else None
    changed = loss.evaluate(other, population).target
    assert changed is not None
    assert (getattr(changed, makes) - getattr(target, makes)).abs().max() > 1e-3
