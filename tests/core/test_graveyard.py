"""Real defects of published code, seeded one by one with the real decorators: the contract must reject each.

Every mutant names the check that catches it; the healthy functions of the core pass the same checks (test_contract.py).
"""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from contract import (
    CHECKS,
    Check,
    a_flipped_label_is_the_same_label,
    asks_for_the_gap_alone_exactly_if_declared,
    columns_matter_exactly_if_used,
    declared_scores_are_enough,
    each_pair_alone_gives_the_same_loss,
    each_response_alone_gets_the_same_reward,
    finite_as_far_as_declared,
    finite_at_initialisation,
    finite_for_an_empty_response,
    finite_when_the_policy_is_the_reference,
    gradient_is_the_derivative,
    least_at_the_margin_exactly_if_declared,
    one_loss_for_each_pair,
    one_reward_for_each_response,
    permuting_the_pairs_permutes_the_losses,
    rejects,
    rewards_are_measured_from_the_zero,
    scores_matter_exactly_if_declared,
    smooth_exactly_if_declared,
    the_gradient_reaches_the_model,
    zero_at_the_reference_exactly_if_anchored,
)
from contract_targets import (
    a_tie_has_no_winner,
    an_empty_population_means_no_adaptation,
    any_one_evidence_is_enough,
    chance_is_reproducible,
    columns_are_made_exactly_as_declared,
    each_pair_alone_gets_the_same_target,
    every_column_is_one_value_a_pair,
    evidence_matters_exactly_if_declared,
    finite_for_every_population,
    finite_for_every_score,
    finite_or_refused_when_evidence_is_equal,
    finite_when_all_gaps_are_equal,
    memory_matters_exactly_if_declared,
    missing_evidence_is_refused,
    no_gradient_passes,
    permuting_the_pairs_permutes_the_target,
    scores_of_a_target_matter_exactly_if_declared,
    single_precision_is_enough,
    the_population_matters_exactly_if_declared,
)
from inputs import PAIRS, Case, refused, some_labels, some_pair_scores
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from marginkit.core.evidence import untied
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
@objective(uses={"prob"})
def head_column_against_prob(rewards: Rewards, target: Target) -> Tensor:
    """MMPO's reward trainer: logits [B, 1] times prob [B] is [B, B], so every pair gets the mean prob."""
    slack = rewards.gap[:, None]
    return -(target.prob * logsigmoid(slack) + (1 - target.prob) * logsigmoid(-slack)).mean(1)


@caught_by(OBJECTIVES, each_pair_alone_gives_the_same_loss)
@objective(uses={"prob"})
def batch_mean_prob(rewards: Rewards, target: Target) -> Tensor:
    """The same defect, spelt out."""
    return cross_entropy(rewards.gap, target.prob.mean())


@caught_by(OBJECTIVES, one_loss_for_each_pair)
@objective()
def loss_with_a_token_mask(rewards: Rewards, target: Target) -> Tensor:
    """HALOs SLiC: a loss [B] plus a regulariser [B, T]."""
    return torch.relu(1 - rewards.gap)[:, None] + torch.ones(len(rewards.gap), 7, dtype=rewards.value.dtype)


@caught_by(OBJECTIVES, one_loss_for_each_pair)
@objective(uses={"prob"})
def already_reduced(rewards: Rewards, target: Target) -> Tensor:
    """A mean where one loss a pair is promised."""
    return cross_entropy(rewards.gap, target.prob).mean()


@caught_by(OBJECTIVES, permuting_the_pairs_permutes_the_losses)
@objective(uses={"prob"})
def first_pair_counts_double(rewards: Rewards, target: Target) -> Tensor:
    """Depends on the place in the batch."""
    place = torch.ones_like(target.prob)
    place[0] = 2.0
    return place * cross_entropy(rewards.gap, target.prob)


@caught_by(OBJECTIVES, finite_at_initialisation)
@objective(uses={"prob"})
def divides_by_the_gap(rewards: Rewards, target: Target) -> Tensor:
    """0 / 0 when policy == reference."""
    return cross_entropy(rewards.gap / rewards.gap.abs(), target.prob)


@caught_by(OBJECTIVES, finite_at_initialisation)
@objective(uses={"margin"}, matches=True)
def root_of_the_square(rewards: Rewards, target: Target) -> Tensor:
    """The value is fine at 0 and the gradient is not: d sqrt(x^2) = 0 / 0."""
    return torch.sqrt((rewards.gap - target.margin) ** 2)


@caught_by(OBJECTIVES, finite_as_far_as_declared)
@objective(uses={"prob"}, finite_to=1e4)
def log_of_one_plus_exp(rewards: Rewards, target: Target) -> Tensor:
    """OpenRLHF LogExpLoss: exp overflows."""
    return torch.log(1 + torch.exp(-rewards.gap)) + (1 - target.prob) * rewards.gap


@caught_by(OBJECTIVES, finite_as_far_as_declared)
@objective(uses={"prob"}, finite_to=1e4)
def log_of_sigmoid(rewards: Rewards, target: Target) -> Tensor:
    """log(0) where the sigmoid underflows."""
    return -target.prob * torch.log(torch.sigmoid(rewards.gap)) - (1 - target.prob) * logsigmoid(-rewards.gap)


@caught_by(OBJECTIVES, smooth_exactly_if_declared)
@objective(uses={"margin"}, smooth=True)
def hinge_called_smooth(rewards: Rewards, target: Target) -> Tensor:
    """A kink that the declaration denies."""
    return torch.relu(1 + target.margin - rewards.gap)


@caught_by(OBJECTIVES, smooth_exactly_if_declared)
@objective(asks="own", smooth=True)
def small_kink_in_one_reward(rewards: Rewards, target: Target) -> Tensor:
    """A kink of size 0.05 in the rejected reward alone."""
    return cross_entropy(rewards.gap, torch.ones_like(target.prob)) + 0.05 * torch.relu(rewards.rejected - 0.3)


@caught_by(OBJECTIVES, smooth_exactly_if_declared)
@objective(uses={"prob"}, smooth=False)
def logistic_called_kinked(rewards: Rewards, target: Target) -> Tensor:
    """No kink where one is declared."""
    return cross_entropy(rewards.gap, target.prob)


@caught_by(OBJECTIVES, asks_for_the_gap_alone_exactly_if_declared)
@objective(uses={"prob"}, asks="gap")
def chosen_reward_alone(rewards: Rewards, target: Target) -> Tensor:
    """Not a function of the gap."""
    return cross_entropy(rewards.chosen, target.prob)


@caught_by(OBJECTIVES, asks_for_the_gap_alone_exactly_if_declared)
@objective(uses={"prob"}, asks="anchored")
def gap_alone(rewards: Rewards, target: Target) -> Tensor:
    """A function of the gap that denies it."""
    return cross_entropy(rewards.gap, target.prob)


@caught_by(OBJECTIVES, columns_matter_exactly_if_used, a_flipped_label_is_the_same_label)
@objective(uses={"prob"})
def prob_ignored(rewards: Rewards, target: Target) -> Tensor:
    """A soft label is taken and treated as a hard one."""
    return softplus(-rewards.gap)


@caught_by(OBJECTIVES, columns_matter_exactly_if_used)
@objective()
def prob_used_in_secret(rewards: Rewards, target: Target) -> Tensor:
    """The declaration would let the soft label be dropped."""
    return cross_entropy(rewards.gap, target.prob)


@caught_by(OBJECTIVES, a_flipped_label_is_the_same_label)
@objective(uses={"prob"})
def half_of_the_cross_entropy(rewards: Rewards, target: Target) -> Tensor:
    """The term of the flipped label is missing: prob acts as a weight."""
    return target.prob * softplus(-rewards.gap)


@caught_by(OBJECTIVES, columns_matter_exactly_if_used)
@objective(uses={"prob"})
def weighted_twice(rewards: Rewards, target: Target) -> Tensor:
    """The shell multiplies by the weight again."""
    return target.weight * cross_entropy(rewards.gap, target.prob)


@caught_by(OBJECTIVES, columns_matter_exactly_if_used)
@objective(uses={"prob"})
def masks_by_itself(rewards: Rewards, target: Target) -> Tensor:
    """Left-out pairs become zeros, which a mean then counts."""
    return target.keep * cross_entropy(rewards.gap, target.prob)


@caught_by(OBJECTIVES, gradient_is_the_derivative)
@objective(uses={"prob"})
def half_detached(rewards: Rewards, target: Target) -> Tensor:
    """The value is right and the gradient is of something else."""
    return softplus(rewards.gap.detach()) - target.prob * rewards.gap


@caught_by(OBJECTIVES, columns_matter_exactly_if_used)
@objective(uses={"margin", "prob"})
def margin_forgotten(rewards: Rewards, target: Target) -> Tensor:
    """A margin is declared, accepted and dropped: bt_margin trains as bt."""
    return cross_entropy(rewards.gap, target.prob)


@caught_by(OBJECTIVES, columns_matter_exactly_if_used)
@objective()
def margin_in_secret(rewards: Rewards, target: Target) -> Tensor:
    """Asks for a gap that the declaration does not speak of."""
    return softplus(target.margin - rewards.gap)


@caught_by(OBJECTIVES, columns_matter_exactly_if_used)
@objective(uses={"margin", "scale"})
def scale_forgotten(rewards: Rewards, target: Target) -> Tensor:
    """MADPO's beta-DPO baseline: the batch's beta is computed and the fixed one used."""
    return softplus(target.margin - rewards.gap)


@caught_by(OBJECTIVES, columns_matter_exactly_if_used)
@objective(uses={"margin"})
def scale_in_secret(rewards: Rewards, target: Target) -> Tensor:
    """Follows a scale that it does not declare."""
    return softplus(target.margin - target.scale * rewards.gap)


@caught_by(OBJECTIVES, columns_matter_exactly_if_used)
@objective(uses={"zero"}, asks="anchored")
def zero_forgotten(rewards: Rewards, target: Target) -> Tensor:
    """KTO without its reference level."""
    return torch.sigmoid(-rewards.chosen) + torch.sigmoid(rewards.rejected)


@caught_by(OBJECTIVES, columns_matter_exactly_if_used)
@objective(asks="anchored")
def zero_in_secret(rewards: Rewards, target: Target) -> Tensor:
    """Measures from a level that the declaration denies."""
    return torch.sigmoid(target.zero[:, 0] - rewards.chosen)


@caught_by(OBJECTIVES, columns_matter_exactly_if_used)
@objective(uses={"prob", "weight"})
def weight_declared_for_itself(rewards: Rewards, target: Target) -> Tensor:
    """The shell applies the weight, whatever an objective declares."""
    return target.weight * cross_entropy(rewards.gap, target.prob)


@caught_by(OBJECTIVES, rewards_are_measured_from_the_zero)
@objective(uses={"zero"}, asks="anchored")
def zero_added(rewards: Rewards, target: Target) -> Tensor:
    """HALOs KTO with the sign of the reference level turned round."""
    return torch.sigmoid(-(rewards.chosen + target.zero[:, 0])) + torch.sigmoid(rewards.rejected + target.zero[:, 1])


@caught_by(OBJECTIVES, rewards_are_measured_from_the_zero)
@objective(uses={"zero"}, asks="gap")
def zero_of_a_gap(rewards: Rewards, target: Target) -> Tensor:
    """A level for single rewards in a loss that sees only their difference."""
    return softplus(target.zero[:, 0] - target.zero[:, 1] - rewards.gap)


@caught_by(OBJECTIVES, least_at_the_margin_exactly_if_declared)
@objective(uses={"margin"}, matches=True)
def logistic_called_matching(rewards: Rewards, target: Target) -> Tensor:
    """A tie that is to match a gap of 0 would be trained toward a winner."""
    return softplus(target.margin - rewards.gap)


@caught_by(OBJECTIVES, least_at_the_margin_exactly_if_declared)
@objective(uses={"margin"}, matches=False)
def squared_called_beyond(rewards: Rewards, target: Target) -> Tensor:
    """A gap larger than its margin costs, and the declaration denies it."""
    return (rewards.gap - target.margin) ** 2


@caught_by(OBJECTIVES, least_at_the_margin_exactly_if_declared)
@objective(uses={"margin"}, matches=True)
def ipo_with_twice_its_margin(rewards: Rewards, target: Target) -> Tensor:
    """1 / tau where 1 / (2 tau) is meant: the loss is least elsewhere."""
    return (rewards.gap - 2.0 * target.margin) ** 2


@caught_by(OBJECTIVES, asks_for_the_gap_alone_exactly_if_declared)
@objective(asks="gap", finite_to=1e4)
def pulled_to_zero_in_secret(rewards: Rewards, target: Target) -> Tensor:
    """TRL's `center_rewards_coefficient`, declared as a loss of the gap."""
    return softplus(-rewards.gap) + 0.01 * (rewards.chosen + rewards.rejected) ** 2


@caught_by(OBJECTIVES, finite_as_far_as_declared)
@objective(uses={"prob"}, finite_to=10.0)
def reach_understated(rewards: Rewards, target: Target) -> Tensor:
    """Declares less than it can, so that real divergences would be put down to it."""
    return cross_entropy(rewards.gap, target.prob)


@caught_by(OBJECTIVES, finite_as_far_as_declared)
@objective(asks="anchored", finite_to=1e4)
def bpo_exponential_called_far(rewards: Rewards, target: Target) -> Tensor:
    """BPO's exponential shape overflows in float32 beyond 88."""
    return torch.exp(-rewards.chosen)


@caught_by(OBJECTIVES, finite_at_initialisation)
@objective(asks="anchored")
def kto_saturated(rewards: Rewards, target: Target) -> Tensor:
    """HALOs KTO: 1 - sigmoid in place of sigmoid(-x), and its logarithm."""
    return torch.log(1.0 - torch.sigmoid(-rewards.chosen))


@caught_by(OBJECTIVES, one_loss_for_each_pair)
@objective(uses={"prob"}, normaliser="token")
def pairs_divided_by_tokens(rewards: Rewards, target: Target) -> Tensor:
    """WPO: a mean over tokens where the loss is one a pair."""
    return cross_entropy(rewards.gap, target.prob)


@caught_by(OBJECTIVES, one_loss_for_each_pair)
@objective(uses={"prob"})
def always_in_single_precision(rewards: Rewards, target: Target) -> Tensor:
    """Casts behind the caller's back."""
    return cross_entropy(rewards.gap.float(), target.prob.float())


@caught_by(OBJECTIVES, each_pair_alone_gives_the_same_loss)
@objective(asks="anchored")
def cal_dpo_mean_square(rewards: Rewards, target: Target) -> Tensor:
    """Cal-DPO: the squared term is a mean over the batch, added to every pair."""
    return softplus(-rewards.gap) + 0.5 * ((rewards.chosen - 5.0) ** 2).mean()


@caught_by(OBJECTIVES, each_pair_alone_gives_the_same_loss)
@objective(per="response", asks="own", normaliser="response")
def responses_centred_over_the_batch(rewards: Rewards, target: Target | None = None) -> Tensor:
    """A loss per response that depends on the others."""
    return (rewards.value - rewards.value.mean()) ** 2


@caught_by(OBJECTIVES, columns_matter_exactly_if_used)
@objective(per="response", asks="own", normaliser="response")
def regression_to_a_level_in_secret(rewards: Rewards, target: Target) -> Tensor:
    """Per response, the level is a declaration too."""
    return (rewards.value - target.zero) ** 2


@pytest.mark.parametrize(("check", "mutant"), every(OBJECTIVES))
def test_the_contract_rejects_the_objective(check: Check, mutant: Case) -> None:
    """Each seeded defect of an objective is seen by the check that is there for it."""
    rejects(check, mutant)


# ------------------------------------------------------------------------------------------------------ targets


def raw(gap: Tensor, **columns: Tensor) -> Target:
    """A Target put together by hand, past the checks of `Target.of`."""
    one, zero = torch.ones_like(gap), torch.zeros_like(gap)
    made = {"margin": zero, "prob": one, "weight": one, "scale": one, "keep": one.bool()}
    made["zero"] = torch.zeros(len(gap), 2, dtype=gap.dtype)
    return Target(**(made | columns))


def grades_of(labels: Labels) -> Tensor:
    """The grade gap, without any of the care that it needs."""
    return labels.strength if labels.grade is None else labels.grade[:, 0] - labels.grade[:, 1]


@caught_by(TARGETS, every_column_is_one_value_a_pair)
@target(needs={"grade_gap"}, makes={"prob"})
def prob_as_a_column(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """[B, 1] where [B] is promised."""
    return raw(gap, prob=torch.sigmoid(gap)[:, None])


@caught_by(TARGETS, every_column_is_one_value_a_pair)
@target(makes={"margin"})
def always_float32(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """A target in another dtype than the gap it is compared with."""
    return raw(gap, margin=torch.zeros(len(gap), dtype=torch.float32))


@caught_by(TARGETS, each_pair_alone_gets_the_same_target)
@target(needs={"grade_gap"}, makes={"prob"})
def mean_grade_gap_of_the_batch(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """Every pair gets the batch's mean probability."""
    grades = grades_of(labels)
    return Target.of(gap, prob=torch.sigmoid(grades).mean().expand(len(gap)))


@caught_by(TARGETS, each_pair_alone_gets_the_same_target)
@target(couples="none", makes={"margin"})
def margin_from_the_batch(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """A statistic of the micro-batch, not handed in: changes with batch size and rank count."""
    return Target.of(gap, margin=gap.mean().expand(len(gap)))


@caught_by(TARGETS, no_gradient_passes)
@target(needs={"grade_gap"}, makes={"margin"})
def margin_that_learns(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """A target that the gradient can move toward the model."""
    grades = grades_of(labels)
    return raw(gap, margin=grades)


@caught_by(TARGETS, finite_when_all_gaps_are_equal)
@target(makes={"margin"})
def standardised_gap(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """Mean and std of identical gaps: 0 / 0 at initialisation."""
    return Target.of(gap, margin=(gap - gap.mean()) / gap.std())


@caught_by(TARGETS, finite_when_all_gaps_are_equal)
@target(makes={"weight"})
def divided_by_the_gap(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """1 / 0 at initialisation."""
    return Target.of(gap, weight=1.0 / gap.abs())


@caught_by(TARGETS, finite_or_refused_when_evidence_is_equal)
@target(needs={"grade_gap"}, makes={"margin"})
def log_of_the_grade_gap(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """ODPO: log(score_w - score_l) is -inf on a tie, unguarded."""
    grades = grades_of(labels)
    return Target.of(gap, margin=torch.log(grades))


@caught_by(TARGETS, missing_evidence_is_refused)
@target(needs={"grade_gap"}, makes={"margin"})
def zero_for_missing(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """OpenRLHF: a missing margin becomes 0."""
    if labels.strength is None and labels.grade is None:
        return Target.of(gap)
    grades = grades_of(labels)
    return Target.of(gap, margin=torch.nan_to_num(grades))


@caught_by(TARGETS, any_one_evidence_is_enough)
@target(makes={"margin"})
def strength_not_declared(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """Crashes on data without a strength, which the declaration allows."""
    return Target.of(gap, margin=labels.strength * 1.0)


@caught_by(TARGETS, evidence_matters_exactly_if_declared)
@target(makes={"margin"})
def strength_read_in_secret(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """Changes with a column that a user has reason to think unused."""
    return Target.of(gap, margin=0.0 if labels.strength is None else labels.strength)


@caught_by(TARGETS, evidence_matters_exactly_if_declared)
@target(makes={"weight"})
def weight_applied_twice(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """The data's weight belongs to the shell."""
    return Target.of(gap, weight=1.0 if labels.weight is None else labels.weight)


@caught_by(TARGETS, evidence_matters_exactly_if_declared)
@target(needs={"grade_gap"})
def evidence_never_used(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """Asks for grades and ignores them."""
    return Target.of(gap)


@caught_by(TARGETS, the_population_matters_exactly_if_declared)
@target(makes={"margin"})
def population_in_secret(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """Depends on other pairs and says it does not."""
    return Target.of(gap, margin=0.0 if population is None else float(population.gaps.std()))


@caught_by(TARGETS, the_population_matters_exactly_if_declared)
@target(couples="population")
def population_never_used(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """Makes the shell gather gaps for nothing."""
    return Target.of(gap)


@caught_by(TARGETS, a_tie_has_no_winner)
@target(needs={"grade_gap"}, makes={"margin"})
def hard_label_for_ties(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """A tie is trained toward whichever response happened to come first."""
    grades = grades_of(labels)
    return Target.of(gap, margin=grades)


@caught_by(TARGETS, a_tie_has_no_winner)
@target(needs={"grade_gap"}, makes={"margin", "keep"})
def one_tie_drops_the_batch(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """A tie changes what its neighbours are trained to."""
    grades = grades_of(labels)
    return Target.of(gap, margin=grades, keep=labels.tie is None or not bool(labels.tie.any()))


@caught_by(TARGETS, columns_are_made_exactly_as_declared)
@target(needs={"grade_gap"}, makes={"weight", "keep"})
def prob_set_in_secret(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """Composition would let it stand beside a loss that reads no prob."""
    return Target.of(gap, weight=grades_of(labels), prob=0.9, keep=untied(labels))


@caught_by(TARGETS, columns_are_made_exactly_as_declared)
@target(makes={"margin", "keep"})
def margin_never_set(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """Refused beside losses that it would go with."""
    return Target.of(gap, keep=untied(labels))


@caught_by(TARGETS, columns_are_made_exactly_as_declared)
@target(makes={"margin", "weight", "keep"})
def ipo_without_its_weight(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """IPO: (tau h - 1/2)^2 is tau^2 times the paper's loss; the factor is declared and left out."""
    return Target.of(gap, margin=0.5, keep=untied(labels))


@caught_by(TARGETS, columns_are_made_exactly_as_declared)
@target()
def keep_set_in_secret(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """Leaves pairs out and does not say so."""
    return Target.of(gap, keep=untied(labels))


@caught_by(TARGETS, columns_are_made_exactly_as_declared)
@target(couples="population", makes={"keep"})
def weight_set_once_something_is_seen(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """A default for an empty population hides an undeclared column."""
    return Target.of(gap, weight=0.5 if len(population.gaps) else 1.0, keep=untied(labels))


@caught_by(TARGETS, every_column_is_one_value_a_pair)
@target(needs={"logp", "length"}, makes={"weight"})
def wpo_weight_a_token(labels: Labels, gap: Tensor, population: Population | None, scores: PairScores) -> Target:
    """WPO: weights [B, T] where the loss is [B]."""
    return raw(gap, weight=(scores.logp / scores.length)[:, :1].expand(len(gap), 7))


@caught_by(TARGETS, finite_for_every_score)
@target(needs={"logp", "length", "log_collision"}, makes={"weight"})
def wpo_without_a_clamp(labels: Labels, gap: Tensor, population: Population | None, scores: PairScores) -> Target:
    """Exp of a sum over both responses: one confident pair is infinite."""
    q = (scores.logp - scores.log_collision) / scores.length.clamp(min=1.0)
    return Target.of(gap, weight=torch.exp(q.sum(1)))


@caught_by(TARGETS, finite_for_every_score)
@target(needs={"rm_head"}, makes={"weight"})
def madpo_inf_times_0(labels: Labels, gap: Tensor, population: Population | None, scores: PairScores) -> Target:
    """MADPO: the ratio of two sigmoids times a mask; where the lower one underflows it is 0 / 0, or inf * 0."""
    h = scores.rm_head[:, 0] - scores.rm_head[:, 1]
    inside = (h > -2.0).to(h.dtype)
    return Target.of(gap, weight=inside * torch.sigmoid(2.0 * h) / torch.sigmoid(h) + (1.0 - inside))


@caught_by(TARGETS, finite_for_every_score)
@target(needs={"rm_head"}, makes={"weight"})
def weight_below_zero(labels: Labels, gap: Tensor, population: Population | None, scores: PairScores) -> Target:
    """A raw reward gap as a weight: a pair that the reward model turns round is trained backwards."""
    return Target.of(gap, weight=scores.rm_head[:, 0] - scores.rm_head[:, 1])


@caught_by(TARGETS, each_pair_alone_gets_the_same_target)
@target(needs={"length"}, makes={"margin"})
def batch_size_for_length(labels: Labels, gap: Tensor, population: Population | None, scores: PairScores) -> Target:
    """R-DPO in a released trainer: len() of the batch in place of the responses' lengths."""
    return Target.of(gap, margin=-0.05 * (scores.length[:, 0] - len(gap)))


@caught_by(TARGETS, scores_of_a_target_matter_exactly_if_declared)
@target(needs={"length"}, makes={"margin"})
def difference_of_equal_lengths(
    labels: Labels, gap: Tensor, population: Population | None, scores: PairScores
) -> Target:
    """R-DPO in the same trainer: both padded to one length, so the term is 0 for every pair."""
    return Target.of(gap, margin=0.05 * (scores.length.amax(1) - scores.length.amax(1)))


@caught_by(TARGETS, scores_of_a_target_matter_exactly_if_declared)
@target(needs={"logp"}, makes={"weight"})
def length_looked_at_in_secret(
    labels: Labels, gap: Tensor, population: Population | None, scores: PairScores
) -> Target:
    """The seam hands over what is declared and nothing else."""
    return Target.of(gap, weight=torch.exp((scores.logp / scores.length).sum(1)))


@caught_by(TARGETS, scores_of_a_target_matter_exactly_if_declared)
@target(needs={"logp", "rm_head"}, makes={"weight"})
def reward_model_run_for_nothing(
    labels: Labels, gap: Tensor, population: Population | None, scores: PairScores
) -> Target:
    """Pays for a pass of a second model."""
    return Target.of(gap, weight=torch.exp(scores.logp.mean(1) / 100.0))


@caught_by(TARGETS, each_pair_alone_gets_the_same_target)
@target(needs={"head"}, makes={"margin"}, couples="batch")
def coupled_only_by_declaration(
    labels: Labels, gap: Tensor, population: Population | None, scores: PairScores
) -> Target:
    """Declares that pairs of a call matter to each other, and they do not."""
    return Target.of(gap, margin=torch.sigmoid(scores.head[:, 0]))


@caught_by(TARGETS, each_pair_alone_gets_the_same_target)
@target(needs={"head"}, makes={"margin"})
def coupled_in_secret(labels: Labels, gap: Tensor, population: Population | None, scores: PairScores) -> Target:
    """APLOT without its declaration: a micro-batch decides the margins."""
    cost = torch.sigmoid(-(scores.head[:, :1] - scores.head[:, 1]).abs())
    return Target.of(gap, margin=cost.mean(1))


@caught_by(TARGETS, permuting_the_pairs_permutes_the_target)
@target(needs={"head"}, makes={"margin"}, couples="batch")
def only_what_came_before(labels: Labels, gap: Tensor, population: Population | None, scores: PairScores) -> Target:
    """A running mean over the batch depends on its order."""
    return Target.of(gap, margin=scores.head[:, 0].cumsum(0))


@caught_by(TARGETS, a_tie_has_no_winner)
@target(needs={"head"}, makes={"margin", "keep"}, couples="batch")
def transport_to_ties(labels: Labels, gap: Tensor, population: Population | None, scores: PairScores) -> Target:
    """Pairs that are left out still decide the margins of the others."""
    cost = torch.sigmoid(-(scores.head[:, :1] - scores.head[:, 1]).abs())
    return Target.of(gap, margin=cost.mean(1), keep=untied(labels))


@caught_by(TARGETS, single_precision_is_enough)
@target(needs={"logp"}, makes={"margin"})
def difference_of_large_sums(labels: Labels, gap: Tensor, population: Population | None, scores: PairScores) -> Target:
    """A sum over the batch's tokens, taken off again: nothing of the difference is left in float32."""
    return Target.of(gap, margin=(scores.logp[:, 0] + 1e8) - (scores.logp[:, 1] + 1e8))


@caught_by(TARGETS, no_gradient_passes)
@target(makes={"margin"}, couples="population")
def margin_that_learns_from_the_population(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """APLOT without `detach`: the model lowers its loss by lowering the margin."""
    return raw(gap, margin=population.gaps.sum().expand(len(gap)))


# -------------------------------------------------------------------------------------- populations and memory

KEPT_INSIDE: list[Tensor] = []


@caught_by(TARGETS, chance_is_reproducible)
@target(makes={"margin"}, couples="population")
def queue_kept_inside(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """gamma-PO: a queue in the trainer, so that an evaluation between two steps changes the second."""
    KEPT_INSIDE.append(population.gaps)
    return Target.of(gap, margin=float(torch.cat(KEPT_INSIDE).sum()))


@caught_by(TARGETS, chance_is_reproducible)
@target(makes={"keep"}, couples="population")
def chance_of_torch_itself(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """beta-DPO: each rank draws its own pairs, and a resumed run draws others."""
    return Target.of(gap, keep=torch.rand(len(gap)) > 0.5)


@caught_by(TARGETS, finite_for_every_population)
@target(makes={"margin"}, couples="population")
def amapo_of_one_pair(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """AMaPO: the standard deviation of one gap is NaN, and NaN times a closed gate is NaN."""
    mean, sd = population.gaps.mean().to(gap.dtype), population.gaps.std().to(gap.dtype)
    return Target.of(gap, margin=(gap < mean) * torch.exp((mean - gap) / sd * mean))


@caught_by(TARGETS, finite_for_every_population)
@target(makes={"margin"}, couples="population")
def exponent_without_a_bound(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """AMaPO's code on a pool of confident gaps: exp(z * mean) overflows."""
    seen = population.gaps.to(gap.dtype)
    if len(seen) < 2 or float(seen.std()) == 0.0:
        return Target.of(gap)
    exponent = (seen.mean() - gap) / seen.std() * seen.mean().abs()
    return Target.of(gap, margin=torch.where(gap < seen.mean(), torch.exp(exponent), torch.zeros_like(gap)))


@caught_by(TARGETS, finite_when_all_gaps_are_equal)
@target(needs={"chance"}, makes={"keep", "weight"}, couples="population", remembers="moments")
def beta_dpo_without_spread(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """beta-DPO: weights exp(-z^2 / 2) with sd 0 are NaN."""
    return Target.of(gap, weight=torch.exp(-0.5 * ((gap - population.mean) / population.sd) ** 2))


@caught_by(TARGETS, finite_when_all_gaps_are_equal)
@target(makes={"margin"}, couples="population")
def alpha_dpo_at_its_start(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """alpha-DPO: no eps under the standard deviation, and policy == reference."""
    seen = population.gaps.to(gap.dtype)
    return Target.of(gap, margin=1.5 + 0.5 * (gap - seen.mean()) / seen.std())


@caught_by(TARGETS, an_empty_population_means_no_adaptation)
@target(makes={"margin"}, couples="population")
def mean_of_nobody(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """The mean of no gaps is NaN: the first step of a run."""
    return Target.of(gap, margin=float(population.gaps.mean()))


@caught_by(TARGETS, an_empty_population_means_no_adaptation)
@target(makes={"margin"}, couples="population")
def the_batch_for_nobody(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """Falls back on the gap itself where nothing has been seen."""
    return Target.of(gap, margin=gap if not len(population.gaps) else float(population.gaps.mean()))


@caught_by(TARGETS, an_empty_population_means_no_adaptation)
@target(makes={"keep"}, couples="population")
def nobody_is_kept(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """Waits for a population before it trains at all."""
    return Target.of(gap, keep=len(population.gaps) > 0)


@caught_by(TARGETS, memory_matters_exactly_if_declared)
@target(makes={"margin"}, couples="population")
def past_in_secret(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """Changes with a queue that nobody saves."""
    return Target.of(gap, margin=0.0 if population.past is None else float(population.past.mean()))


@caught_by(TARGETS, memory_matters_exactly_if_declared)
@target(makes={"margin"}, couples="population", remembers="queue")
def past_never_used(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """Saves a queue for nothing."""
    return Target.of(gap, margin=float(population.gaps.sum()))


@caught_by(TARGETS, memory_matters_exactly_if_declared)
@target(makes={"margin"}, couples="population", remembers="moments")
def running_sd_never_used(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """One of two running values is dropped."""
    mean = population.gaps.sum() if population.mean is None else population.mean
    return Target.of(gap, margin=float(mean))


@caught_by(TARGETS, memory_matters_exactly_if_declared)
@target(makes={"margin"}, couples="population", remembers="queue")
def moments_beside_the_queue(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """Reads running values where a queue is declared."""
    past = 0.0 if population.past is None else float(population.past.sum())
    return Target.of(gap, margin=past + (0.0 if population.mean is None else float(population.mean)))


@caught_by(TARGETS, memory_matters_exactly_if_declared)
@target(makes={"margin"}, couples="population")
def chances_of_others_in_secret(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """Samples by numbers that the shell need not have drawn."""
    return Target.of(gap, margin=0.0 if population.chance is None else float(population.chance[:1].sum()))


@caught_by(TARGETS, evidence_matters_exactly_if_declared)
@target(makes={"keep"})
def chance_in_secret(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """Samples pairs and says it does not."""
    return Target.of(gap, keep=True if labels.chance is None else labels.chance > 0.5)


@caught_by(TARGETS, evidence_matters_exactly_if_declared)
@target(needs={"chance"}, makes={"keep"})
def chance_never_used(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """Has the shell draw numbers for nothing."""
    return Target.of(gap, keep=untied(labels))


@caught_by(TARGETS, evidence_matters_exactly_if_declared)
@target(makes={"margin"})
def schedule_in_secret(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """A margin that moves over training, declared as constant."""
    return Target.of(gap, margin=1.0 if labels.progress is None else 1.0 - 0.8 * labels.progress)


@caught_by(TARGETS, evidence_matters_exactly_if_declared)
@target(reads={"progress"}, makes={"margin"})
def schedule_never_followed(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """RePO: gamma_end is accepted and the margin stays."""
    return Target.of(gap, margin=1.0)


# ---------------------------------------------------------------------------------- ties, and single responses


@caught_by(TARGETS, a_tie_has_no_winner)
@target(needs={"grade_gap"}, makes={"margin", "keep"}, ties_match=True)
def ties_left_out_by_a_matching_target(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """A tie is evidence for a gap of 0, and the declaration says it is used."""
    return Target.of(gap, margin=grades_of(labels), keep=untied(labels))


@caught_by(TARGETS, a_tie_has_no_winner)
@target(needs={"grade_gap"}, makes={"margin"}, ties_match=True)
def ties_matched_to_their_strength(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """RPO: a tie whose two grades differ by noise is matched to the noise."""
    return Target.of(gap, margin=grades_of(labels))


@caught_by(TARGETS, a_tie_has_no_winner)
@target(needs={"grade_gap"}, makes={"weight"}, ties_match=True)
def ties_match_at_weight_0(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """HelpSteer2's scaled loss: a preference of 0 stays in the mean and counts nothing."""
    won = torch.ones_like(gap, dtype=torch.bool) & untied(labels)
    return Target.of(gap, weight=torch.where(won, grades_of(labels), torch.zeros_like(gap)))


@caught_by(TARGETS, a_tie_has_no_winner)
@target(needs={"grade_gap"}, makes={"margin"})
def ties_matched_in_secret(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """Without the declaration a hinge or a logistic would train the tie toward a winner."""
    won = torch.ones_like(gap, dtype=torch.bool) & untied(labels)
    return Target.of(gap, margin=torch.where(won, grades_of(labels), torch.zeros_like(gap)))


@caught_by(TARGETS, missing_evidence_is_refused)
@target(per="response", needs={"grade"}, makes={"zero", "keep"})
def missing_grade_is_0(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """A response without a grade is trained to the grade 0."""
    grade = torch.zeros_like(gap) if labels.grade is None else torch.nan_to_num(labels.grade)
    return Target.of(gap, zero=grade)


@caught_by(TARGETS, every_column_is_one_value_a_pair)
@target(per="response", needs={"grade"}, makes={"zero"})
def level_of_a_pair_for_a_response(labels: Labels, gap: Tensor, population: Population | None) -> Target:
    """[R, 2] where [R] is promised."""
    return Target.of(gap, zero=torch.stack((labels.grade, labels.grade), 1))


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


@caught_by(REWARDS, zero_at_the_reference_exactly_if_anchored)
@reward(needs={"logp", "length"}, anchored=True)
def mean_log_prob_called_anchored(scores: SequenceScores) -> Rewards:
    """BPO on SimPO's reward: min(r_w, -alpha r_l) of two negative numbers is always the chosen one."""
    return Rewards(scores.logp / scores.length.clamp(min=1.0))


@caught_by(REWARDS, zero_at_the_reference_exactly_if_anchored)
@reward(needs={"logp", "ref_logp"}, anchored=False)
def log_ratio_not_called_anchored(scores: SequenceScores) -> Rewards:
    """Would be refused beside every loss that looks at single rewards."""
    return Rewards(0.1 * (scores.logp - scores.ref_logp))


@caught_by(REWARDS, zero_at_the_reference_exactly_if_anchored)
@reward(needs={"logp", "ref_logp"}, anchored=True)
def half_of_the_reference(scores: SequenceScores) -> Rewards:
    """The reference is scaled: policy == reference is no zero."""
    return Rewards(scores.logp - 0.5 * scores.ref_logp)


@caught_by(REWARDS, finite_for_an_empty_response)
@reward(needs={"logp", "length"})
def simpo_of_an_empty_response(scores: SequenceScores) -> Rewards:
    """SimPO, RePO, ORPO: 0 / 0 where a response has no tokens."""
    return Rewards(scores.logp / scores.length)


@caught_by(REWARDS, finite_for_an_empty_response)
@reward(needs={"logp", "length"})
def odds_of_a_certain_response(scores: SequenceScores) -> Rewards:
    """ORPO: log(1 - 1) is -inf, and its gradient NaN."""
    mean = scores.logp / scores.length.clamp(min=1.0)
    return Rewards(mean - torch.log1p(-torch.exp(mean)))


@caught_by(REWARDS, one_reward_for_each_response)
@reward(needs={"logp", "ref_logp"})
def upcast_behind_the_caller(scores: SequenceScores) -> Rewards:
    """float64 where float32 came in: twice the memory, and another dtype than the target's."""
    return Rewards(scores.logp.double() - scores.ref_logp.double())


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


def test_the_seam_detaches_gap_and_scores_before_a_target_sees_them() -> None:
    """A target cannot leak the model's own gradient, even when it is written as if it could (APLOT, WPO)."""
    seen: list[bool] = []

    @target(needs={"logp"}, makes={"margin"})
    def spy(labels: Labels, gap: Tensor, population: Population | None, scores: PairScores) -> Target:
        seen.extend((gap.requires_grad, scores.logp.requires_grad))
        return raw(gap, margin=0.5 * gap + scores.logp.sum(1))

    live = PairScores(logp=torch.zeros(3, 2, requires_grad=True), head=torch.zeros(3, 2, requires_grad=True))
    made = spy(Labels(), torch.zeros(3, requires_grad=True), None, live)
    assert seen == [False, False]
    assert not made.margin.requires_grad


def test_the_seam_hands_over_the_declared_scores_and_no_others() -> None:
    """Not the labels beside them either: those come by themselves."""
    seen: list[PairScores] = []

    @target(needs={"length"}, makes={"margin"})
    def spy(labels: Labels, gap: Tensor, population: Population | None, scores: PairScores) -> Target:
        seen.append(scores)
        return Target.of(gap)

    spy(Labels(), torch.zeros(PAIRS), None, replace(some_pair_scores("length", "logp"), weight=torch.ones(PAIRS)))
    assert [column.name for column in fields(PairScores) if getattr(seen[0], column.name) is not None] == ["length"]


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
