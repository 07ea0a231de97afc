"""Targets: what the gap of a pair should be. Detached by construction; nothing here reaches a gradient.

A tie has no winner. Targets with a hard label therefore leave it out (`keep` false); `soft_label` gives it prob 1/2.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from marginkit.core.evidence import graded, soft_prob, untied
from marginkit.core.parts import target
from marginkit.core.tensors import Labels, Population, Target
from marginkit.errors import BadInput


@target(makes={"keep"})
def none(labels: Labels, gap: Float[Tensor, " pair"], population: Population | None) -> Target:
    """The label and nothing else: prob 1, margin 0.

    Args:
        labels: only `tie` is read.
        gap: [P] logits.
        population: not used.

    Returns:
        Target with ties left out.

    Example:
        >>> none(Labels(tie=torch.tensor([False, True])), torch.zeros(2)).keep
        tensor([ True, False])

    Source: DPO, arXiv 2305.18290, equation 7; Bradley-Terry.
    """
    return Target.of(gap, keep=untied(labels))


@target(makes={"margin", "keep"})
def constant_margin(
    labels: Labels, gap: Float[Tensor, " pair"], population: Population | None, *, margin: float
) -> Target:
    """The same margin for every pair.

    Args:
        labels: only `tie` is read.
        gap: [P] logits.
        population: not used.
        margin: logits.

    Returns:
        Target with ties left out.

    Example:
        >>> constant_margin(Labels(), torch.zeros(2), margin=0.5).margin
        tensor([0.5000, 0.5000])

    Source: the target reward margin of SimPO, arXiv 2405.14734, equation 6.
    """
    return Target.of(gap, margin=margin, keep=untied(labels))


@target(makes={"prob", "keep"})
def constant_prob(labels: Labels, gap: Float[Tensor, " pair"], population: Population | None, *, eps: float) -> Target:
    """The label is right with the same probability everywhere: prob = 1 - eps.

    Args:
        labels: only `tie` is read.
        gap: [P] logits.
        population: not used.
        eps: the share of labels taken to be wrong, in [0, 1/2).

    Returns:
        Target with ties left out.

    Example:
        >>> constant_prob(Labels(), torch.zeros(1), eps=0.1).prob
        tensor([0.9000])

    Source: conservative DPO (label smoothing); E. Mitchell, "A note on DPO with noisy preferences", 2023.
    """
    return Target.of(gap, prob=1.0 - eps, keep=untied(labels))


@target(needs={"utility_gap"}, makes={"prob"})
def soft_label(
    labels: Labels, gap: Float[Tensor, " pair"], population: Population | None, *, gamma: float | None = None
) -> Target:
    """MMPO's soft Bradley-Terry label: prob = sigmoid(gamma * (grade of chosen - grade of rejected)).

    Where the evidence is already a probability (votes, judge odds) or in logits (utilities), that is the target and
    gamma is not used: votes > prob > logits > ties (1/2) > strength > difference of grades.

    Args:
        labels: the evidence.
        gap: [P] logits.
        population: not used.
        gamma: logits per dataset unit; needed where a pair has only grades or a strength.

    Returns:
        Target with every pair kept; a tie has prob 1/2 at every gamma.

    Raises:
        BadInput: a pair has no evidence, or only grades and no gamma was given.

    Example:
        >>> labels = Labels(grade=torch.tensor([[4.0, 1.0], [2.0, 2.0]]))
        >>> soft_label(labels, torch.zeros(2), gamma=0.3).prob
        tensor([0.7109, 0.5000])

    Source: MMPO, arXiv 2410.03145, section 3.2; code kykim0/margin-matching-pref-opt at 91b6dad.
    Deviation: there gamma = 0 silently means prob 1 (plain DPO); here it means what the formula says, prob 1/2.
    """
    return Target.of(gap, prob=soft_prob(labels, gamma=gamma))


@target(needs={"grade_gap"}, makes={"margin", "keep"})
def grade_margin(labels: Labels, gap: Float[Tensor, " pair"], population: Population | None, *, scale: float) -> Target:
    """A margin in proportion to the grade gap: margin = scale * (grade of chosen - grade of rejected).

    Args:
        labels: `strength`, else two grades.
        gap: [P] logits.
        population: not used.
        scale: logits per dataset unit.

    Returns:
        Target with ties left out.

    Raises:
        BadInput: a pair that is not a tie has no grade gap.

    Example:
        >>> grade_margin(Labels(strength=torch.tensor([2.0])), torch.zeros(1), scale=0.5).margin
        tensor([1.])

    Source: Llama 2, arXiv 2307.09288, equation 2, with m(r) = scale * grade gap; TRL's `margin` column is scale 1.
    """
    keep, grades = graded(labels, gap, "a grade margin")
    return Target.of(gap, margin=scale * grades, keep=keep)


@target(needs={"grade_gap"}, makes={"weight", "keep"})
def grade_weight(labels: Labels, gap: Float[Tensor, " pair"], population: Population | None, *, scale: float) -> Target:
    """A pair counts in proportion to its grade gap: weight = scale * |grade of chosen - grade of rejected|.

    Args:
        labels: `strength`, else two grades.
        gap: [P] logits.
        population: not used.
        scale: weight of one grade.

    Returns:
        Target with ties left out.

    Raises:
        BadInput: a pair that is not a tie has no grade gap.

    Example:
        >>> grade_weight(Labels(strength=torch.tensor([3.0])), torch.zeros(1), scale=1.0).weight
        tensor([3.])

    Source: scaled Bradley-Terry of HelpSteer2-Preference, arXiv 2410.01257; code NVIDIA/NeMo-Aligner at af2b3bd.
    Deviation: there a preference of 0 is read as "the second is better", with weight 0.
    """
    keep, grades = graded(labels, gap, "a grade weight")
    return Target.of(gap, weight=scale * grades.abs(), keep=keep)


@target(needs={"grade_gap"}, makes={"margin"}, ties_match=True)
def matched_gap(labels: Labels, gap: Float[Tensor, " pair"], population: Population | None, *, scale: float) -> Target:
    """The gap is to equal the grades' own: margin = scale * (grade of chosen - grade of rejected), 0 for a tie.

    For objectives that match a margin; a tie stays, and asks for a gap of 0.

    Args:
        labels: `strength`, else two grades.
        gap: [P] logits.
        population: not used.
        scale: logits per dataset unit.

    Returns:
        Target with every pair kept.

    Raises:
        BadInput: a pair that is not a tie has no grade gap.

    Example:
        >>> labels = Labels(grade=torch.tensor([[4.0, 1.0], [2.0, 2.0]]))
        >>> matched_gap(labels, torch.zeros(2), None, scale=0.5).margin
        tensor([1.5000, 0.0000])

    Source: RPO of Nemotron-4, arXiv 2406.11704, section 3.3.2; code NVIDIA/NeMo-Aligner at af2b3bd.
    """
    winner, grades = graded(labels, gap, "a matched gap")
    return Target.of(gap, margin=scale * torch.where(winner, grades, torch.zeros_like(grades)))


@target(needs={"grade_gap"}, makes={"margin", "keep"})
def log_grade_margin(
    labels: Labels,
    gap: Float[Tensor, " pair"],
    population: Population | None,
    *,
    alpha: float,
    form: Literal["gap", "ratio"] = "gap",
    outside: Literal["refuse", "leave_out"] = "refuse",
) -> Target:
    """A margin that grows with the logarithm of the grades: margin = alpha * log(grade of chosen - grade of rejected).

    `ratio` takes alpha * log(grade of chosen / grade of rejected) instead. The domain of `gap` is a grade gap > 0, that
    of `ratio` two grades > 0. A gap below 1 gives a negative margin, weaker than DPO, as in the paper.

    Args:
        labels: `strength`, else two grades; `ratio` needs the grades.
        gap: [P] logits.
        population: not used.
        alpha: logits.
        form: gap or ratio.
        outside: what to do with a pair outside the domain that is no tie: refuse it, or leave it out.

    Returns:
        Target with ties left out.

    Raises:
        BadInput: a pair has no grade gap, or lies outside the domain and `outside` is refuse.

    Example:
        >>> labels = Labels(grade=torch.tensor([[3.0, 1.0], [1.0, 2.0]]))
        >>> log_grade_margin(labels, torch.zeros(2), None, alpha=1.0, outside="leave_out").margin
        tensor([0.6931, 0.0000])

    Source: ODPO, arXiv 2402.10571, equation 8; code rycolab/odpo at 6152f67.
    Deviation: there a gap of 0 gives a margin of -inf (the pair is ignored) and a negative one NaN.
    """
    keep, grades = graded(labels, gap, "a log-grade margin")
    if form == "ratio":
        if labels.grade is None or bool((torch.isnan(labels.grade).any(1) & keep).any()):
            raise BadInput(
                "a margin of the ratio of grades needs two grades for every pair; use form=gap for strengths"
            )
        inside = (labels.grade > 0).all(1)
        ratio = labels.grade[:, 0] / labels.grade[:, 1]
        value = torch.where(inside, ratio, torch.ones_like(ratio))
        rule = "form=ratio needs grades above 0"
    else:
        inside = grades > 0
        value = torch.where(inside, grades, torch.ones_like(grades))
        rule = "form=gap needs the chosen grade above the rejected one"
    bad = int((keep & ~inside).sum())
    if bad and outside == "refuse":
        raise BadInput(
            f"{bad} of {len(gap)} pairs have no logarithm of their grades: {rule}; outside=leave_out skips them"
        )
    return Target.of(gap, margin=alpha * torch.log(value), keep=keep & inside)


@target(reads={"progress"}, makes={"margin", "keep"})
def token_margin(
    labels: Labels,
    gap: Float[Tensor, " pair"],
    population: Population | None,
    *,
    gamma: float,
    gamma_end: float | None = None,
    beta: float = 1.0,
) -> Target:
    """A margin in nats a token, constant or on a line in time: margin = beta * (gamma + progress * (end - gamma)).

    Args:
        labels: `tie`; `progress` where `gamma_end` is given.
        gap: [P] logits.
        population: not used.
        gamma: nats a token, at the start.
        gamma_end: nats a token at the end of training; None: constant.
        beta: logits per nat a token, that of the reward.

    Returns:
        Target with ties left out.

    Raises:
        BadInput: a schedule without `progress`.

    Example:
        >>> token_margin(Labels(progress=torch.tensor([0.5])), torch.zeros(1), None, gamma=1.0, gamma_end=0.2).margin
        tensor([0.6000])

    Source: RePO, arXiv 2503.07426; code junkangwu/RePO at 79cdf5b. The paper's decreasing margin (1.0 to 0.2) has no
    stated shape: the straight line is reconstructed.
    """
    margin = torch.full_like(gap, gamma)
    if gamma_end is not None:
        if labels.progress is None:
            raise BadInput(
                "a margin with a schedule needs `progress`, the share of the training done; or drop gamma_end"
            )
        margin = gamma + labels.progress.to(gap.dtype) * (gamma_end - gamma)
    return Target.of(gap, margin=beta * margin, keep=untied(labels))


@target(makes={"margin", "weight", "keep"})
def regularised(labels: Labels, gap: Float[Tensor, " pair"], population: Population | None, *, tau: float) -> Target:
    """IPO's fixed gap: margin = 1/2 and weight = 1 / tau^2, so that a squared loss of tau * h is (h - 1 / (2 tau))^2.

    Args:
        labels: only `tie` is read.
        gap: [P] logits, tau * log-ratio gap.
        population: not used.
        tau: strength of the regularisation, the same as the reward's beta.

    Returns:
        Target with ties left out.

    Example:
        >>> regularised(Labels(), torch.zeros(1), None, tau=0.1).weight
        tensor([100.])

    Source: IPO, arXiv 2310.12036, equation 17.
    """
    return Target.of(gap, margin=0.5, weight=tau**-2, keep=untied(labels))


@target(makes={"weight", "keep"})
def constant_weight(
    labels: Labels, gap: Float[Tensor, " pair"], population: Population | None, *, weight: float
) -> Target:
    """The same weight for every pair, beside an SFT term that it does not touch.

    Args:
        labels: only `tie` is read.
        gap: [P] logits.
        population: not used.
        weight: multiplies the loss.

    Returns:
        Target with ties left out.

    Example:
        >>> constant_weight(Labels(), torch.zeros(1), None, weight=0.1).weight
        tensor([0.1000])

    Source: lambda of ORPO, arXiv 2403.07691, equation 6.
    """
    return Target.of(gap, weight=weight, keep=untied(labels))


@target(per="response", needs={"grade"}, makes={"zero", "keep"})
def grade_value(
    labels: Labels, gap: Float[Tensor, " response"], population: Population | None, *, scale: float
) -> Target:
    """The reward is to equal the grade: zero = scale * grade; responses without a grade are left out.

    Args:
        labels: `grade`, [R] dataset units.
        gap: [R] rewards, in logits.
        population: not used.
        scale: logits per dataset unit.

    Returns:
        Target with every column [R].

    Raises:
        BadInput: there is no column of grades.

    Example:
        >>> grade_value(Labels(grade=torch.tensor([4.0, float("nan")])), torch.zeros(2), None, scale=0.5).zero
        tensor([2., 0.])

    Source: the regression reward models of HelpSteer, arXiv 2311.09528; code NVIDIA/NeMo-Aligner at af2b3bd (one
    attribute; a missing label is left out of the mean there too).
    """
    if labels.grade is None:
        raise BadInput("a reward that equals the grade needs `grade`, one a response (NaN where there is none)")
    known = ~torch.isnan(labels.grade)
    return Target.of(gap, zero=scale * torch.nan_to_num(labels.grade), keep=known)
