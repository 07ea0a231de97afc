"""What every function of the algebra must hold: one check a claim, each over one `Case` (a function and its options).

test_contract.py runs the checks over everything that `marginkit.core` declares, test_graveyard.py over known defects,
which they must reject. Declarations are held in both directions: what is declared shows in some input with some options
of the function, what is not declared shows in none. Any decorated function, a user's own too, can be put into a `Case`.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from contract_targets import TARGET_CHECKS, TRAINED
from inputs import (
    EVERYTHING,
    PAIRS,
    Case,
    alike,
    apply,
    close,
    refused,
    rows,
    some_scores,
    some_target,
)
from inputs import draw as draw
from inputs import without_annotations as without_annotations
from torch import Tensor

from marginkit.core.parts import COLUMNS
from marginkit.core.tensors import Rewards, SequenceScores, Target
from marginkit.errors import BadInput, ShapeError

Check = Callable[[Case], None]


# --------------------------------------------------------------------------------------------------- objectives


def some_rewards(case: Case, seed: int = 1) -> Tensor:
    """[P, 2] or [R] logits, as the objective's declaration wants them."""
    return draw(PAIRS, 2, seed=seed) if case.part.per == "pair" else draw(PAIRS, seed=seed)


def target_for(case: Case, num: int = PAIRS, **columns: Any) -> Target:
    """A target of the objective's own kind in which what is not given varies."""
    return some_target(num, case.part.per, **columns)


def plain_target(case: Case, num: int = PAIRS, dtype: torch.dtype = torch.float64, **columns: Any) -> Target:
    """A target of the objective's own kind in which what is not given has its default."""
    zero = torch.zeros((num, 2) if case.part.per == "pair" else (num,), dtype=dtype)
    return Target.of(torch.zeros(num, dtype=dtype), **({"zero": zero} | columns))


def loss_of(case: Case, value: Tensor, target: Target | None = None) -> Tensor:
    """The objective's loss."""
    loss: Tensor = apply(case, Rewards(value), target_for(case, len(value)) if target is None else target)
    return loss


def gradient_of(case: Case, value: Tensor, target: Target | None = None) -> Tensor:
    """Gradient of the summed loss with respect to the rewards."""
    value = value.detach().clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss_of(case, value, target).sum(), value)
    return gradient


def one_loss_for_each_pair(case: Case) -> None:
    """[P] in, [P] out, in the dtype of the rewards; what a step is divided by fits."""
    assert (case.part.per == "pair") == (case.part.normaliser == "pair"), f"{case}: {case.part.normaliser}"
    for dtype in (torch.float32, torch.float64):
        value = some_rewards(case).to(dtype)
        target = plain_target(case, dtype=dtype, margin=0.3, prob=0.8)
        loss = loss_of(case, value, target)
        assert loss.shape == (PAIRS,)
        assert loss.dtype == dtype


def each_pair_alone_gives_the_same_loss(case: Case) -> None:
    """No pair sees another."""
    value, target = some_rewards(case), target_for(case)
    together = loss_of(case, value, target)
    alone = [loss_of(case, value[i : i + 1], rows(target, torch.tensor([i]))) for i in range(PAIRS)]
    assert close(together, torch.cat(alone)), f"{case}: in the batch {together}, alone {alone}"


def permuting_the_pairs_permutes_the_losses(case: Case) -> None:
    """The order of a batch means nothing."""
    value, target = some_rewards(case), target_for(case)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert close(loss_of(case, value[order], rows(target, order)), loss_of(case, value, target)[order])


def finite_at_initialisation(case: Case) -> None:
    """Policy == reference, or a head of zeros: value and gradient are numbers."""
    for level in (0.0, -40.0):
        value = torch.full_like(some_rewards(case), level)
        for prob in (0.0, 0.5, 1.0):
            _all_finite(case, value, plain_target(case, prob=prob))
        _all_finite(case, value, target_for(case))


def finite_as_far_as_declared(case: Case) -> None:
    """Value and gradient are numbers for |reward| up to `finite_to`, in float32 too; not so far only where need be."""
    for dtype, prob in product((torch.float32, torch.float64), (0.0, 0.5, 1.0)):
        value = _corners(case, case.part.finite_to, dtype)
        _all_finite(case, value, plain_target(case, len(value), dtype, prob=prob))
    if case.part.finite_to < USUAL_REACH:
        value = _corners(case, USUAL_REACH, torch.float32)
        target = plain_target(case, len(value), torch.float32)
        assert not all(
            torch.isfinite(loss_of(variant, value, target)).all()
            and torch.isfinite(gradient_of(variant, value, target)).all()
            for variant in alike(case)
        ), f"{case} is finite beyond the {case.part.finite_to} that it declares"


USUAL_REACH = 1e4


def _corners(case: Case, far: float, dtype: torch.dtype) -> Tensor:
    corners = [(far, -far), (-far, far), (far, far), (-far, -far), (far, 0.0), (0.0, -far)]
    value = torch.tensor(corners, dtype=dtype)
    return value if case.part.per == "pair" else value[:, 0].contiguous()


def _all_finite(case: Case, value: Tensor, target: Target) -> None:
    assert torch.isfinite(loss_of(case, value, target)).all(), f"{case}: loss at rewards {value.tolist()}"
    assert torch.isfinite(gradient_of(case, value, target)).all(), f"{case}: gradient at rewards {value.tolist()}"


def asks_for_the_gap_alone_exactly_if_declared(case: Case) -> None:
    """A constant added to both rewards of a pair changes nothing, or else something."""
    value = some_rewards(case)
    constant = draw(PAIRS, seed=5, low=1.0, high=4.0)
    moved = value + (constant[:, None] if value.ndim == 2 else constant)
    same = close(loss_of(case, value), loss_of(case, moved))
    assert same == (case.part.asks == "gap"), f"{case} declares asks={case.part.asks}"
    assert case.part.shift_invariant == (case.part.asks == "gap")


def smooth_exactly_if_declared(case: Case) -> None:
    """The gradient has no jump, or else it has one."""
    jump = largest_gradient_jump(case)
    if case.part.smooth:
        assert jump < 1e-5, f"{case} declares a continuous gradient, which jumps by {jump:.3g}"
    else:
        assert jump > 1e-3, f"{case} declares a kink, but its gradient jumps by no more than {jump:.3g}"


def largest_gradient_jump(case: Case) -> float:
    """Follow the gradient along lines through the rewards and halve the steepest steps until only a jump is left."""
    directions = [(1.0, -1.0), (1.0, 0.0), (0.0, 1.0), (0.3, -1.7)] if case.part.per == "pair" else [(1.0, 0.0)]
    largest = 0.0
    for direction, prob in product(directions, (1.0, 0.7)):

        def gradient(steps: Tensor, direction: tuple[float, float] = direction, prob: float = prob) -> Tensor:
            value = steps[:, None] * torch.tensor(direction, dtype=torch.float64) + torch.tensor([0.11, -0.07])
            value = value if case.part.per == "pair" else value[:, 0].contiguous()
            target = plain_target(case, len(steps), prob=prob, margin=0.5)
            return gradient_of(case, value, target).reshape(len(steps), -1)

        steps = torch.linspace(-8.0, 8.0, 1601, dtype=torch.float64)
        change = (gradient(steps[1:]) - gradient(steps[:-1])).abs().amax(1)
        low = steps[:-1][change.topk(5).indices]
        high = low + (steps[1] - steps[0])
        for _ in range(26):
            middle = (low + high) / 2
            at_low, at_middle, at_high = gradient(torch.cat((low, middle, high))).chunk(3)
            left = (at_middle - at_low).abs().amax(1) > (at_high - at_middle).abs().amax(1)
            low, high = torch.where(left, low, middle), torch.where(left, middle, high)
        largest = max(largest, float((gradient(high) - gradient(low)).abs().max()))
    return largest


def gradient_is_the_derivative(case: Case) -> None:
    """Autograd agrees with finite differences, in float64."""
    target = target_for(case)
    value = some_rewards(case).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda v: loss_of(case, v, target), (value,), raise_exception=False)


def columns_matter_exactly_if_used(case: Case) -> None:
    """Another margin, prob, scale or zero gives another loss where it is declared, and the same where it is not."""
    assert case.part.uses <= {"margin", "prob", "scale", "zero"}, f"{case}: the shell applies weight and keep"
    value, target = some_rewards(case), target_for(case)
    other = {
        "margin": target.margin + 0.7,
        "prob": 1.0 - 0.5 * target.prob,
        "weight": 2.0 * target.weight,
        "scale": 1.5 * target.scale,
        "keep": torch.tensor([True, False, True, False, False]),
        "zero": target.zero + draw(*target.zero.shape, seed=15, low=1.0, high=2.0),
    }
    for name in COLUMNS:

        def same(variant: Case, name: str = name) -> bool:
            moved = replace(target, **{name: other[name]})
            return close(loss_of(variant, value, target), loss_of(variant, value, moved))

        if name not in case.part.uses:
            assert same(case), f"{case} uses {name} and does not declare it"
        else:
            assert not all(same(variant) for variant in alike(case)), f"{case} declares {name} and does not use it"


def a_flipped_label_is_the_same_label(case: Case) -> None:
    """Chosen and rejected swapped, with 1 - prob: the same statement, hence the same loss."""
    if "prob" not in case.part.uses or case.part.asks != "gap":
        return
    value, target = some_rewards(case), target_for(case, margin=0.0)
    flipped = replace(target, prob=1.0 - target.prob)
    assert close(loss_of(case, value, target), loss_of(case, value.flip(1), flipped)), f"{case}: flipped label"


def least_at_the_margin_exactly_if_declared(case: Case) -> None:
    """The loss is least where the gap (per response: the reward) is what is asked, or else somewhere beyond."""
    beyond = torch.tensor([0.0, -3.0, -1.0, -0.1, 0.1, 1.0, 3.0], dtype=torch.float64)
    least = []
    for level, scale in ((0.7, 1.0), (-0.4, 1.0), (0.7, 2.0)):
        if case.part.per == "response":
            zero = torch.full_like(beyond, level)
            loss = loss_of(case, beyond + level, plain_target(case, len(beyond), zero=zero))
        else:
            value = torch.stack(((beyond + level) / scale + 0.2, torch.full_like(beyond, 0.2)), 1)
            loss = loss_of(case, value, plain_target(case, len(beyond), margin=level, scale=scale))
        least.append(bool((loss[1:] > loss[0]).all()))
    assert all(least) == case.part.matches, f"{case} declares matches={case.part.matches}"
    assert case.part.matches or not any(least), f"{case} matches some margins"


def rewards_are_measured_from_the_zero(case: Case) -> None:
    """Rewards and their zero moved by the same amount: nothing changes; a gap has no zero."""
    if "zero" not in case.part.uses:
        return
    assert case.part.asks != "gap", f"{case} reads a zero of the rewards, which a gap does not have"
    value, target = some_rewards(case), target_for(case)
    constant = draw(PAIRS, seed=5, low=1.0, high=4.0)
    by = constant if case.part.per == "response" else constant[:, None]
    assert close(loss_of(case, value, target), loss_of(case, value + by, replace(target, zero=target.zero + by))), (
        f"{case} does not measure rewards from their zero"
    )


def columns_are_refused(case: Case) -> None:
    """[B, 1] never broadcasts against [B]: the message names both shapes."""
    target = target_for(case)
    if case.part.per == "response":
        for value in (draw(PAIRS, 1), draw(PAIRS, 2)):
            refused(lambda v=value: loss_of(case, v, target), ShapeError, str(list(value.shape)), "[response]")
        if not case.part.uses:
            return
    else:
        for value in (draw(PAIRS, 1), draw(PAIRS), draw(PAIRS, 3)):
            refused(lambda v=value: loss_of(case, v, target), ShapeError, str(list(value.shape)), "[pair, 2]")
    for name in COLUMNS:
        good = list(getattr(target, name).shape)
        column = replace(target, **{name: getattr(target, name).reshape(PAIRS, -1)[:, :1]})
        refused(lambda c=column: loss_of(case, some_rewards(case), c), ShapeError, name, f"[{PAIRS}, 1]", str(good))
    refused(lambda: apply(case, Rewards(some_rewards(case)), None), BadInput, "needs a target")


OBJECTIVE_CHECKS: tuple[Check, ...] = (
    one_loss_for_each_pair,
    each_pair_alone_gives_the_same_loss,
    permuting_the_pairs_permutes_the_losses,
    finite_at_initialisation,
    finite_as_far_as_declared,
    asks_for_the_gap_alone_exactly_if_declared,
    smooth_exactly_if_declared,
    gradient_is_the_derivative,
    columns_matter_exactly_if_used,
    a_flipped_label_is_the_same_label,
    least_at_the_margin_exactly_if_declared,
    rewards_are_measured_from_the_zero,
    columns_are_refused,
)


# ------------------------------------------------------------------------------------------------------ rewards


def reward_of(case: Case, scores: Any) -> Tensor:
    """The function's rewards."""
    value: Tensor = apply(case, scores).value
    return value


def one_reward_for_each_response(case: Case) -> None:
    """[R] in, [R] out, in the dtype of the scores; half precision is not enough for a gap."""
    scores = some_scores(*case.part.needs)
    for dtype, wanted in (
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ):
        given = {name: getattr(scores, name).to(dtype) for name in case.part.needs}
        value = reward_of(case, SequenceScores(**given))
        assert value.shape == (6,)
        assert value.dtype == wanted, f"{case}: {value.dtype} from {dtype}"


def declared_scores_are_enough(case: Case) -> None:
    """With the declared fields and no others it works; without any one of them it is refused by name."""
    needs = case.part.needs
    reward_of(case, some_scores(*needs))
    for missing in needs:
        scores = some_scores(*(needs - {missing}))
        refused(lambda found=scores: reward_of(case, found), BadInput, f"`{missing}`", case.function.__name__)


def scores_matter_exactly_if_declared(case: Case) -> None:
    """A declared field changes the reward; one that was not declared never does."""
    before, other = some_scores(*EVERYTHING), some_scores(*EVERYTHING, seed=77)
    plain = reward_of(case, before)
    assert close(plain, reward_of(case, some_scores(*case.part.needs)))
    for name in EVERYTHING:
        same = close(plain, reward_of(case, replace(before, **{name: getattr(other, name)})))
        assert same == (name not in case.part.needs), (
            f"{case}: {name} declared {name in case.part.needs}, used {not same}"
        )


def each_response_alone_gets_the_same_reward(case: Case) -> None:
    """A reward belongs to one response: not to its batch, its pair or its place in the pair."""
    scores = some_scores(*case.part.needs)
    together = reward_of(case, scores)
    for i in range(6):
        alone = SequenceScores(**{name: getattr(scores, name)[i : i + 1] for name in case.part.needs})
        assert close(together[i : i + 1], reward_of(case, alone)), f"{case}: response {i} alone differs"
    pairs = torch.tensor([[0, 1], [2, 3], [4, 0], [5, 2]])
    assert close(together[pairs], reward_of(case, scores.at(pairs))), f"{case}: [R] and [P, 2] disagree"


def finite_when_the_policy_is_the_reference(case: Case) -> None:
    """At initialisation the reward and its gradient are numbers."""
    scores = some_scores(*case.part.needs)
    if {"logp", "ref_logp"} <= case.part.needs:
        scores = replace(scores, ref_logp=scores.logp)
    trained = [name for name in TRAINED if name in case.part.needs]
    leaves = [getattr(scores, name).clone().requires_grad_(True) for name in trained]
    value = reward_of(case, replace(scores, **dict(zip(trained, leaves, strict=True))))
    assert torch.isfinite(value).all(), f"{case}: {value.tolist()}"
    if value.requires_grad:
        for name, gradient in zip(trained, torch.autograd.grad(value.sum(), leaves), strict=True):
            assert torch.isfinite(gradient).all(), f"{case}: gradient of {name}"


def zero_at_the_reference_exactly_if_anchored(case: Case) -> None:
    """Where the policy is the reference an anchored reward is 0, and no other is."""
    scores = some_scores(*EVERYTHING)
    value = reward_of(case, replace(scores, ref_logp=scores.logp))
    if case.part.anchored:
        assert (value == 0).all(), f"{case} is anchored, but is {value.tolist()} at the reference"
    else:
        assert (value != 0).any(), f"{case} is 0 at the reference and does not declare it"


def finite_for_an_empty_response(case: Case) -> None:
    """No tokens, no log-probability: the reward and its gradient are numbers."""
    zero = torch.zeros(6, dtype=torch.float64)
    empty = {"logp": zero, "ref_logp": zero, "length": zero}
    scores = replace(some_scores(*case.part.needs), **{name: empty[name] for name in case.part.needs & set(empty)})
    trained = [name for name in TRAINED if name in case.part.needs]
    leaves = [getattr(scores, name).clone().requires_grad_(True) for name in trained]
    value = reward_of(case, replace(scores, **dict(zip(trained, leaves, strict=True))))
    assert torch.isfinite(value).all(), f"{case}: {value.tolist()}"
    for name, gradient in zip(trained, torch.autograd.grad(value.sum(), leaves), strict=True):
        assert torch.isfinite(gradient).all(), f"{case}: gradient of {name}"


def the_gradient_reaches_the_model(case: Case) -> None:
    """Every output of the trained model that is declared gets a gradient, which is the derivative."""
    trained = [name for name in TRAINED if name in case.part.needs]
    assert trained, f"{case} reads nothing that is trained"
    scores = some_scores(*case.part.needs)
    leaves = tuple(getattr(scores, name).clone().requires_grad_(True) for name in trained)

    def value(*given: Tensor) -> Tensor:
        return reward_of(case, replace(scores, **dict(zip(trained, given, strict=True))))

    assert value(*leaves).requires_grad, f"{case} is cut off from the model"
    for name, gradient in zip(
        trained, torch.autograd.grad(value(*leaves).sum(), leaves, allow_unused=True), strict=True
    ):
        assert gradient is not None, f"{case}: no gradient reaches {name}"
        assert (gradient != 0).all(), f"{case}: no gradient reaches {name}"
    assert torch.autograd.gradcheck(value, leaves, raise_exception=False)


def score_columns_are_refused(case: Case) -> None:
    """[R, 1] beside [R] never broadcasts; alone it is refused by the objective."""
    if len(case.part.needs) < 2:
        return
    for name in case.part.needs:
        scores = some_scores(*case.part.needs)
        column = replace(scores, **{name: getattr(scores, name)[:, None]})
        refused(lambda found=column: reward_of(case, found), ShapeError, f"{name} [6, 1]", "[6]")


REWARD_CHECKS: tuple[Check, ...] = (
    one_reward_for_each_response,
    declared_scores_are_enough,
    scores_matter_exactly_if_declared,
    each_response_alone_gets_the_same_reward,
    finite_when_the_policy_is_the_reference,
    zero_at_the_reference_exactly_if_anchored,
    finite_for_an_empty_response,
    the_gradient_reaches_the_model,
    score_columns_are_refused,
)

CHECKS: dict[str, tuple[Check, ...]] = {
    "reward": REWARD_CHECKS,
    "target": TARGET_CHECKS,
    "objective": OBJECTIVE_CHECKS,
}


def rejects(check: Check, case: Case) -> None:
    """The check fails, or the seam itself refuses what the function made."""
    with pytest.raises((AssertionError, BadInput)):
        check(case)


Mutants = list[tuple[Check, Any]]


def caught_by(where: Mutants, *checks: Check) -> Callable[[Any], Any]:
    """Enter a mutant under the checks that must reject it."""

    def enter(function: Any) -> Any:
        where.extend((check, function) for check in checks)
        return function

    return enter


def every(mutants: Mutants) -> list[Any]:
    """The mutants as parameters with readable names."""
    return [pytest.param(check, Case(mutant), id=f"{mutant.__name__}-{check.__name__}") for check, mutant in mutants]
