"""Real defects of published code, seeded one by one with the real decorators: the contract must reject each.

Every mutant names the check that catches it; the healthy functions of the core pass the same checks (test_contract.py).
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from contract import (
    CHECKS,
    Case,
    Check,
    a_flipped_label_is_the_same_label,
    a_tie_has_no_winner,
    any_one_evidence_is_enough,
    declared_scores_are_enough,
    each_pair_alone_gets_the_same_target,
    each_pair_alone_gives_the_same_loss,
    each_response_alone_gets_the_same_reward,
    every_column_is_one_value_a_pair,
    evidence_matters_exactly_if_declared,
    finite_as_far_as_declared,
    finite_at_initialisation,
    finite_or_refused_when_evidence_is_equal,
    finite_when_all_gaps_are_equal,
    finite_when_the_policy_is_the_reference,
    gradient_is_the_derivative,
    missing_evidence_is_refused,
    no_gradient_passes,
    one_loss_for_each_pair,
    one_reward_for_each_response,
    permuting_the_pairs_permutes_the_losses,
    prob_matters_exactly_if_declared,
    refused,
    rejects,
    scores_matter_exactly_if_declared,
    shift_invariant_exactly_if_declared,
    smooth_exactly_if_declared,
    some_labels,
    the_gradient_reaches_the_model,
    the_population_matters_exactly_if_declared,
    weight_and_keep_are_left_to_the_shell,
)
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from marginkit.core.parts import objective, reward, target
from marginkit.core.targets import soft_label
from marginkit.core.tensors import Labels, PairScores, Population, Rewards, SequenceScores, Target
from marginkit.errors import BadInput, ShapeError

GAPS = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
OBJECTIVES: list[tuple[Check, Any]] = []
TARGETS: list[tuple[Check, Any]] = []
REWARDS: list[tuple[Check, Any]] = []


def caught_by(where: list[tuple[Check, Any]], *checks: Check) -> Callable[[Any], Any]:
    """Enter a mutant under the checks that must reject it."""

    def enter(function: Any) -> Any:
        where.extend((check, function) for check in checks)
        return function

    return enter


def every(mutants: list[tuple[Check, Any]]) -> list[Any]:
    """The mutants as parameters with readable names."""
    return [pytest.param(check, Case(mutant), id=f"{mutant.__name__}-{check.__name__}") for check, mutant in mutants]


def cross_entropy(slack: Tensor, prob: Tensor) -> Tensor:
    """The healthy loss that the mutants spoil."""
    return softplus(slack) - prob * slack


# --------------------------------------------------------------------------------------------------- objectives


@caught_by(OBJECTIVES, each_pair_alone_gives_the_same_loss)
@objective()
def head_column_against_prob(rewards: Rewards, target: Target) -> Tensor:
    """MMPO's reward trainer: logits [B, 1] times prob [B] is [B, B], so every pair gets the mean prob."""
    slack = rewards.gap[:, None]
    return -(target.prob * logsigmoid(slack) + (1 - target.prob) * logsigmoid(-slack)).mean(1)


@caught_by(OBJECTIVES, each_pair_alone_gives_the_same_loss)
@objective()
def batch_mean_prob(rewards: Rewards, target: Target) -> Tensor:
    """The same defect, spelt out."""
    return cross_entropy(rewards.gap, target.prob.mean())


@caught_by(OBJECTIVES, one_loss_for_each_pair)
@objective()
def loss_with_a_token_mask(rewards: Rewards, target: Target) -> Tensor:
    """HALOs SLiC: a loss [B] plus a regulariser [B, T]."""
    return torch.relu(1 - rewards.gap)[:, None] + torch.ones(len(rewards.gap), 7, dtype=rewards.value.dtype)


@caught_by(OBJECTIVES, one_loss_for_each_pair)
@objective()
def already_reduced(rewards: Rewards, target: Target) -> Tensor:
    """A mean where one loss a pair is promised."""
    return cross_entropy(rewards.gap, target.prob).mean()


@caught_by(OBJECTIVES, each_pair_alone_gives_the_same_loss)
@objective(couples="population")
def coupled_only_by_declaration(rewards: Rewards, target: Target) -> Tensor:
    """Declares that pairs matter to each other, and they do not."""
    return cross_entropy(rewards.gap, target.prob)


@caught_by(OBJECTIVES, permuting_the_pairs_permutes_the_losses)
@objective()
def first_pair_counts_double(rewards: Rewards, target: Target) -> Tensor:
    """Depends on the place in the batch."""
    place = torch.ones_like(target.prob)
    place[0] = 2.0
    return place * cross_entropy(rewards.gap, target.prob)


@caught_by(OBJECTIVES, finite_at_initialisation)
@objective(shift_invariant=True)
def divides_by_the_gap(rewards: Rewards, target: Target) -> Tensor:
    """0 / 0 when policy == reference."""
    return cross_entropy(rewards.gap / rewards.gap.abs(), target.prob)


@caught_by(OBJECTIVES, finite_at_initialisation)
@objective()
def root_of_the_square(rewards: Rewards, target: Target) -> Tensor:
    """The value is fine at 0 and the gradient is not: d sqrt(x^2) = 0 / 0."""
    return torch.sqrt((rewards.gap - target.margin) ** 2)


@caught_by(OBJECTIVES, finite_as_far_as_declared)
@objective(finite_to=1e4)
def log_of_one_plus_exp(rewards: Rewards, target: Target) -> Tensor:
    """OpenRLHF LogExpLoss: exp overflows."""
    return torch.log(1 + torch.exp(-rewards.gap)) + (1 - target.prob) * rewards.gap


@caught_by(OBJECTIVES, finite_as_far_as_declared)
@objective(finite_to=1e4)
def log_of_sigmoid(rewards: Rewards, target: Target) -> Tensor:
    """log(0) where the sigmoid underflows."""
    return -target.prob * torch.log(torch.sigmoid(rewards.gap)) - (1 - target.prob) * logsigmoid(-rewards.gap)


@caught_by(OBJECTIVES, smooth_exactly_if_declared)
@objective(smooth=True, uses_prob=False)
def hinge_called_smooth(rewards: Rewards, target: Target) -> Tensor:
    """A kink that the declaration denies."""
    return torch.relu(1 + target.margin - rewards.gap)


@caught_by(OBJECTIVES, smooth_exactly_if_declared)
@objective(smooth=True, shift_invariant=False, uses_prob=False)
def small_kink_in_one_reward(rewards: Rewards, target: Target) -> Tensor:
    """A kink of size 0.05 in the rejected reward alone."""
    return cross_entropy(rewards.gap, torch.ones_like(target.prob)) + 0.05 * torch.relu(rewards.rejected - 0.3)


@caught_by(OBJECTIVES, smooth_exactly_if_declared)
@objective(smooth=False)
def logistic_called_kinked(rewards: Rewards, target: Target) -> Tensor:
    """No kink where one is declared."""
    return cross_entropy(rewards.gap, target.prob)


@caught_by(OBJECTIVES, shift_invariant_exactly_if_declared)
@objective(shift_invariant=True)
def chosen_reward_alone(rewards: Rewards, target: Target) -> Tensor:
    """Not a function of the gap."""
    return cross_entropy(rewards.chosen, target.prob)


@caught_by(OBJECTIVES, shift_invariant_exactly_if_declared)
@objective(shift_invariant=False)
def gap_alone(rewards: Rewards, target: Target) -> Tensor:
    """A function of the gap that denies it."""
    return cross_entropy(rewards.gap, target.prob)


@caught_by(OBJECTIVES, prob_matters_exactly_if_declared, a_flipped_label_is_the_same_label)
@objective(uses_prob=True)
def prob_ignored(rewards: Rewards, target: Target) -> Tensor:
    """A soft label is taken and treated as a hard one."""
    return softplus(-rewards.gap)


@caught_by(OBJECTIVES, prob_matters_exactly_if_declared)
@objective(uses_prob=False)
def prob_used_in_secret(rewards: Rewards, target: Target) -> Tensor:
    """The declaration would let the soft label be dropped."""
    return cross_entropy(rewards.gap, target.prob)


@caught_by(OBJECTIVES, a_flipped_label_is_the_same_label)
@objective(uses_prob=True)
def half_of_the_cross_entropy(rewards: Rewards, target: Target) -> Tensor:
    """The term of the flipped label is missing: prob acts as a weight."""
    return target.prob * softplus(-rewards.gap)


@caught_by(OBJECTIVES, weight_and_keep_are_left_to_the_shell)
@objective()
def weighted_twice(rewards: Rewards, target: Target) -> Tensor:
    """The shell multiplies by the weight again."""
    return target.weight * cross_entropy(rewards.gap, target.prob)


@caught_by(OBJECTIVES, weight_and_keep_are_left_to_the_shell)
@objective()
def masks_by_itself(rewards: Rewards, target: Target) -> Tensor:
    """Left-out pairs become zeros, which a mean then counts."""
    return target.keep * cross_entropy(rewards.gap, target.prob)


@caught_by(OBJECTIVES, gradient_is_the_derivative)
@objective()
def half_detached(rewards: Rewards, target: Target) -> Tensor:
    """The value is right and the gradient is of something else."""
    return softplus(rewards.gap.detach()) - target.prob * rewards.gap


@pytest.mark.parametrize(("check", "mutant"), every(OBJECTIVES))
def test_the_contract_rejects_the_objective(check: Check, mutant: Case) -> None:
    """Each seeded defect of an objective is seen by the check that is there for it."""
    rejects(check, mutant)


# ------------------------------------------------------------------------------------------------------ targets


def raw(gap: Tensor, **columns: Tensor) -> Target:
    """A Target put together by hand, past the checks of `Target.of`."""
    one, zero = torch.ones_like(gap), torch.zeros_like(gap)
    made = {"margin": zero, "prob": one, "weight": one, "scale": one, "keep": one.bool()}
    return Target(**(made | columns))


@caught_by(TARGETS, every_column_is_one_value_a_pair)
@target(needs={"grade_gap"})
def prob_as_a_column(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """[B, 1] where [B] is promised."""
    return raw(gap, prob=torch.sigmoid(gap)[:, None])


@caught_by(TARGETS, every_column_is_one_value_a_pair)
@target()
def always_float32(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """A target in another dtype than the gap it is compared with."""
    return raw(gap, margin=torch.zeros(len(gap), dtype=torch.float32))


@caught_by(TARGETS, each_pair_alone_gets_the_same_target)
@target(needs={"grade_gap"})
def mean_grade_gap_of_the_batch(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """Every pair gets the batch's mean probability."""
    grades = labels.strength if labels.grade is None else labels.grade[:, 0] - labels.grade[:, 1]
    return Target.of(gap, prob=torch.sigmoid(grades).mean().expand(len(gap)))


@caught_by(TARGETS, each_pair_alone_gets_the_same_target)
@target(couples="none")
def margin_from_the_batch(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """A statistic of the micro-batch, not handed in: changes with batch size and rank count."""
    return Target.of(gap, margin=gap.mean().expand(len(gap)))


@caught_by(TARGETS, no_gradient_passes)
@target(needs={"grade_gap"})
def margin_that_learns(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """A target that the gradient can move toward the model."""
    grades = labels.strength if labels.grade is None else labels.grade[:, 0] - labels.grade[:, 1]
    return raw(gap, margin=grades)


@caught_by(TARGETS, finite_when_all_gaps_are_equal)
@target()
def standardised_gap(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """Mean and std of identical gaps: 0 / 0 at initialisation."""
    return Target.of(gap, margin=(gap - gap.mean()) / gap.std())


@caught_by(TARGETS, finite_when_all_gaps_are_equal)
@target()
def divided_by_the_gap(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """1 / 0 at initialisation."""
    return Target.of(gap, weight=1.0 / gap.abs())


@caught_by(TARGETS, finite_or_refused_when_evidence_is_equal)
@target(needs={"grade_gap"})
def log_of_the_grade_gap(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """ODPO: log(score_w - score_l) is -inf on a tie, unguarded."""
    grades = labels.strength if labels.grade is None else labels.grade[:, 0] - labels.grade[:, 1]
    return Target.of(gap, margin=torch.log(grades))


@caught_by(TARGETS, missing_evidence_is_refused)
@target(needs={"grade_gap"})
def zero_for_missing(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """OpenRLHF: a missing margin becomes 0."""
    if labels.strength is None and labels.grade is None:
        return Target.of(gap)
    grades = labels.strength if labels.grade is None else labels.grade[:, 0] - labels.grade[:, 1]
    return Target.of(gap, margin=torch.nan_to_num(grades))


@caught_by(TARGETS, any_one_evidence_is_enough)
@target()
def strength_not_declared(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """Crashes on data without a strength, which the declaration allows."""
    return Target.of(gap, margin=labels.strength * 1.0)


@caught_by(TARGETS, evidence_matters_exactly_if_declared)
@target()
def strength_read_in_secret(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """Changes with a column that a user has reason to think unused."""
    return Target.of(gap, margin=0.0 if labels.strength is None else labels.strength)


@caught_by(TARGETS, evidence_matters_exactly_if_declared)
@target()
def weight_applied_twice(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """The data's weight belongs to the shell."""
    return Target.of(gap, weight=1.0 if labels.weight is None else labels.weight)


@caught_by(TARGETS, evidence_matters_exactly_if_declared)
@target(needs={"grade_gap"})
def evidence_never_used(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """Asks for grades and ignores them."""
    return Target.of(gap)


@caught_by(TARGETS, the_population_matters_exactly_if_declared)
@target()
def population_in_secret(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """Depends on other pairs and says it does not."""
    return Target.of(gap, margin=0.0 if population is None else float(population.gaps.std()))


@caught_by(TARGETS, the_population_matters_exactly_if_declared)
@target(couples="population")
def population_never_used(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """Makes the shell gather gaps for nothing."""
    return Target.of(gap)


@caught_by(TARGETS, a_tie_has_no_winner)
@target(needs={"grade_gap"})
def hard_label_for_ties(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """A tie is trained toward whichever response happened to come first."""
    grades = labels.strength if labels.grade is None else labels.grade[:, 0] - labels.grade[:, 1]
    return Target.of(gap, margin=grades)


@caught_by(TARGETS, a_tie_has_no_winner)
@target(needs={"grade_gap"})
def one_tie_drops_the_batch(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """A tie changes what its neighbours are trained to."""
    grades = labels.strength if labels.grade is None else labels.grade[:, 0] - labels.grade[:, 1]
    return Target.of(gap, margin=grades, keep=labels.tie is None or not bool(labels.tie.any()))


@pytest.mark.parametrize(("check", "mutant"), every(TARGETS))
def test_the_contract_rejects_the_target(check: Check, mutant: Case) -> None:
    """Each seeded defect of a target is seen by the check that is there for it."""
    rejects(check, mutant)


# ------------------------------------------------------------------------------------------------------ rewards


@caught_by(REWARDS, declared_scores_are_enough)
@reward(needs={"logp"})
def length_not_declared(scores: SequenceScores) -> Rewards:
    """Needs lengths and does not say so."""
    return Rewards(scores.logp / scores.length)


@caught_by(REWARDS, scores_matter_exactly_if_declared)
@reward(needs={"logp"})
def reference_in_secret(scores: SequenceScores) -> Rewards:
    """What is optimised depends on whether someone stored a reference."""
    return Rewards(scores.logp if scores.ref_logp is None else scores.logp - scores.ref_logp)


@caught_by(REWARDS, scores_matter_exactly_if_declared)
@reward(needs={"logp", "ref_logp"})
def reference_loaded_and_never_used(scores: SequenceScores) -> Rewards:
    """HALOs SimPO: pays for a reference model."""
    return Rewards(1.0 * scores.logp)


@caught_by(REWARDS, each_response_alone_gets_the_same_reward)
@reward(needs={"head"})
def centred_over_the_batch(scores: SequenceScores) -> Rewards:
    """A reward that depends on who else is in the batch."""
    return Rewards(scores.head - scores.head.mean())


@caught_by(REWARDS, each_response_alone_gets_the_same_reward)
@reward(needs={"head"})
def reads_its_place_in_the_pair(scores: SequenceScores) -> Rewards:
    """The rejected response is judged on another scale."""
    if scores.head.ndim == 1:
        return Rewards(1.0 * scores.head)
    return Rewards(scores.head * torch.tensor([1.0, 0.5], dtype=scores.head.dtype))


@caught_by(REWARDS, one_reward_for_each_response)
@reward(needs={"head"})
def head_with_its_last_dimension(scores: SequenceScores) -> Rewards:
    """[R, 1], as a sequence classifier gives it."""
    return Rewards(scores.head[..., None])


@caught_by(REWARDS, the_gradient_reaches_the_model)
@reward(needs={"logp", "ref_logp"})
def detached_policy(scores: SequenceScores) -> Rewards:
    """The loss falls nowhere: the model gets no gradient."""
    return Rewards(scores.logp.detach() - scores.ref_logp)


@caught_by(REWARDS, finite_when_the_policy_is_the_reference)
@reward(needs={"logp", "ref_logp"})
def mean_over_nonzero_terms(scores: SequenceScores) -> Rewards:
    """HALOs IPO: divides by the count of non-zero terms, 0 / 0 when policy == reference."""
    difference = scores.logp - scores.ref_logp
    return Rewards(difference / (difference != 0))


@pytest.mark.parametrize(("check", "mutant"), every(REWARDS))
def test_the_contract_rejects_the_reward(check: Check, mutant: Case) -> None:
    """Each seeded defect of a reward is seen by the check that is there for it."""
    rejects(check, mutant)


# ------------------------------------------------------------------------- defects in how the parts are called


def test_a_head_with_its_last_dimension_is_refused_at_the_door() -> None:
    """Logits [B, 1] of a sequence classifier never reach a reward function."""
    with pytest.raises(ShapeError, match=r"PairScores\.head has shape \[3, 1\], expected \[3, 2\]"):
        PairScores(head=torch.zeros(3, 1))
    with pytest.raises(ShapeError, match=r"PairScores\.head has shape \[3, 2, 1\], expected \[3, 2\]"):
        PairScores(head=torch.zeros(3, 2, 1))


def test_a_prob_with_a_last_dimension_is_refused_at_the_door() -> None:
    """[B, 1] labels never meet [B] gaps."""
    with pytest.raises(ShapeError, match=r"PairScores\.prob has shape \[3, 1\], expected \[3\]; one value a pair"):
        PairScores(head=torch.zeros(3, 2), prob=torch.full((3, 1), 0.7))
    with pytest.raises(ShapeError, match=r"Target\.prob has shape \[3, 1\], expected \[3\]; one value a pair"):
        Target.of(torch.zeros(3), prob=torch.full((3, 1), 0.7))


def test_one_pair_hides_no_column() -> None:
    """At B = 1 a column would broadcast without a trace, so it is refused there too."""
    column = torch.full((1, 1), 0.7)
    refused(lambda: soft_label(Labels(prob=column), torch.zeros(1)), ShapeError, "prob has shape [1, 1], expected [1]")
    refused(lambda: PairScores(head=torch.zeros(1, 2), prob=column), ShapeError, "prob has shape [1, 1], expected [1]")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: already_reduced(Rewards(GAPS), Target.of(GAPS[:, 0])),
            "objective already_reduced returned [], expected [3]",
        ),
        (
            lambda: loss_with_a_token_mask(Rewards(GAPS), Target.of(GAPS[:, 0])),
            "objective loss_with_a_token_mask returned [3, 7], expected [3]",
        ),
        (
            lambda: prob_as_a_column(Labels(), GAPS[:, 0]),
            "target prob_as_a_column: prob has shape [3, 1], expected [3]",
        ),
        (
            lambda: always_float32(Labels(), GAPS),
            "target always_float32: gap has shape [3, 2], expected [pair]",
        ),
        (
            lambda: head_with_its_last_dimension(SequenceScores(head=GAPS[:, 0])),
            "reward head_with_its_last_dimension returned [3, 1] from ",
        ),
    ],
)
def test_the_seam_names_the_function_and_the_shapes(call: Callable[[], object], message: str) -> None:
    """What the decorators refuse, whatever the function inside them does."""
    with pytest.raises(ShapeError) as refusal:
        call()
    assert str(refusal.value).startswith(message)


def test_the_seam_detaches_the_gap_before_a_target_sees_it() -> None:
    """A target cannot leak the model's own gradient, even when it is written as if it could."""
    seen: list[bool] = []

    @target()
    def spy(labels: Labels, gap: Tensor, population: Population | None) -> Target:
        seen.append(gap.requires_grad)
        return raw(gap, margin=0.5 * gap)

    made = spy(Labels(), torch.zeros(3, requires_grad=True))
    assert seen == [False]
    assert not made.margin.requires_grad


def test_a_population_that_is_declared_has_to_be_handed_in() -> None:
    """Not silently replaced by the batch."""
    with pytest.raises(BadInput, match="target population_never_used needs a population of gaps"):
        population_never_used(Labels(), GAPS[:, 0])


def test_a_target_that_carries_a_gradient_is_refused_by_name() -> None:
    """The seam names the function and the column."""
    labels = some_labels("strength")
    labels.strength.requires_grad_(True)
    with pytest.raises(BadInput, match="target margin_that_learns: margin carries a gradient; a target is detached"):
        margin_that_learns(labels, torch.zeros(5, dtype=torch.float64))


def test_every_check_has_a_defect_that_it_catches() -> None:
    """A check that rejects nothing would prove nothing; the rest are held by the seam, whatever the function does."""
    held_by_the_seam = {"columns_are_refused", "label_columns_are_refused", "score_columns_are_refused"}
    for kind, mutants in (("objective", OBJECTIVES), ("target", TARGETS), ("reward", REWARDS)):
        catching = {check.__name__ for check, _ in mutants}
        assert {check.__name__ for check in CHECKS[kind]} - catching == held_by_the_seam & {
            check.__name__ for check in CHECKS[kind]
        }
