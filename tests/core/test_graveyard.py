"""Real defects of published code, seeded one by one with the real decorators: the contract must reject each.

Every mutant names the check that catches it; the healthy functions of the core pass the same checks (test_contract.py).
"""

from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from contract import (
    CHECKS,
    Check,
    Mutants,
    a_flipped_label_is_the_same_label,
    asks_for_the_gap_alone_exactly_if_declared,
    caught_by,
    columns_matter_exactly_if_used,
    declared_scores_are_enough,
    each_pair_alone_gives_the_same_loss,
    each_response_alone_gets_the_same_reward,
    every,
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
from inputs import PAIRS, Case, refused, some_labels, some_pair_scores
from test_graveyard_targets import (
    TARGETS,
    always_float32,
    margin_that_learns,
    population_never_used,
    prob_as_a_column,
    raw,
)
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from marginkit.core.parts import objective, reward, target
from marginkit.core.targets import soft_label
from marginkit.core.tensors import Labels, PairScores, Population, Rewards, SequenceScores, Target
from marginkit.errors import BadInput, ShapeError

GAPS = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
OBJECTIVES: Mutants = []
REWARDS: Mutants = []


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
