"""Targets: what the gap of a pair should be. Detached by construction; nothing here reaches a gradient.

A tie has no winner. Targets with a hard label therefore leave it out (`keep` false); `soft_label` gives it prob 1/2.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from marginkit.core.parts import target
from marginkit.core.tensors import Labels, Population, Target
from marginkit.errors import BadInput


def _kept(labels: Labels) -> Bool[Tensor, " pair"] | bool:
    return True if labels.tie is None else ~labels.tie


def grade_gap(labels: Labels) -> Float[Tensor, " pair"] | None:
    """How much better the chosen response is, in dataset units: strength, else the difference of grades; NaN if absent.

    Example:
        >>> grade_gap(Labels(grade=torch.tensor([[4.0, 1.0]]), strength=torch.tensor([float("nan")])))
        tensor([3.])
    """
    difference = None if labels.grade is None else labels.grade[:, 0] - labels.grade[:, 1]
    if labels.strength is None or difference is None:
        return labels.strength if difference is None else difference
    return torch.where(torch.isnan(labels.strength), difference, labels.strength)


def native_gap(labels: Labels) -> Float[Tensor, " pair"] | None:
    """How much better, in logits, where the evidence says so itself: target gap, else difference of utilities.

    Example:
        >>> native_gap(Labels(utility=torch.tensor([[1.0, 0.5]])))
        tensor([0.5000])
    """
    difference = None if labels.utility is None else labels.utility[:, 0] - labels.utility[:, 1]
    if labels.target_gap is None or difference is None:
        return labels.target_gap if difference is None else difference
    return torch.where(torch.isnan(labels.target_gap), difference, labels.target_gap)


def soft_prob(labels: Labels, *, gamma: float | None) -> Float[Tensor, " pair"]:
    """P(the label is right) of every pair: observed prob > sigmoid(native gap) > tie 1/2 > sigmoid(gamma * grade gap).

    Raises:
        BadInput: a pair has no evidence, or only grades and no gamma was given.
    """
    steps: list[Tensor] = []
    if labels.prob is not None:
        steps.append(labels.prob)
    if (native := native_gap(labels)) is not None:
        steps.append(torch.sigmoid(native))
    if labels.tie is not None:
        given = (*steps, labels.strength, labels.grade)
        dtype = next((c.dtype for c in given if c is not None and c.is_floating_point()), torch.get_default_dtype())
        nan = torch.full(labels.tie.shape, float("nan"), dtype=dtype, device=labels.tie.device)
        steps.append(nan.masked_fill(labels.tie, 0.5))
    if gamma is not None and (grades := grade_gap(labels)) is not None:
        steps.append(torch.sigmoid(gamma * grades))
    if not steps:
        raise BadInput(_NO_EVIDENCE if gamma is not None else _NO_GAMMA)
    prob = steps[0]
    for step in steps[1:]:
        prob = torch.where(torch.isnan(prob), step.to(prob.dtype), prob)
    if bool(torch.isnan(prob).any()):
        raise BadInput(_NO_EVIDENCE if gamma is not None else _NO_GAMMA)
    return prob


_NO_GAMMA = (
    "soft labels from grades need `gamma` (logits per dataset unit): prob = sigmoid(gamma * grade gap); "
    "give gamma, or pairs with prob, votes, target_gap or utilities"
)
_NO_EVIDENCE = (
    "soft labels need evidence of how much better the chosen response is: a prob, votes, a target gap, utilities, "
    "a strength or two grades; a pair has none of them"
)


@target()
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
    return Target.of(gap, keep=_kept(labels))


@target()
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
    return Target.of(gap, margin=margin, keep=_kept(labels))


@target()
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
    return Target.of(gap, prob=1.0 - eps, keep=_kept(labels))


@target(needs={"utility_gap"})
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


@target(needs={"grade_gap"})
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
    keep = _kept(labels)
    grades = grade_gap(labels)
    if grades is None:
        grades = torch.full_like(gap, float("nan"))
    if bool((torch.isnan(grades) & keep).any()):
        raise BadInput("a grade margin needs a strength or two grades for every pair; a pair has neither")
    return Target.of(gap, margin=torch.nan_to_num(scale * grades), keep=keep)
