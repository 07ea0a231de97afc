"""Real defects of published targets, seeded one by one with the real decorators; test_graveyard.py has the others."""

import pytest
import torch
from contract import (
    Check,
    Mutants,
    caught_by,
    every,
    rejects,
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
from inputs import Case
from torch import Tensor

from marginkit.core.evidence import untied
from marginkit.core.parts import target
from marginkit.core.tensors import Labels, PairScores, Population, Target

TARGETS: Mutants = []


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
    seen = population.gaps.to(gap.dtype)
    mean = seen.mean()
    sd = (((seen - mean) ** 2).sum() / torch.tensor(len(seen) - 1)).sqrt()
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
