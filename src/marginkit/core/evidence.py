"""What the labels of a pair say: its grade gap, its gap in logits, its probability. NaN marks a pair without it."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from marginkit.core.tensors import Labels
from marginkit.errors import BadInput


def untied(labels: Labels) -> Bool[Tensor, " pair"] | bool:
    """Which pairs have a winner.

    Example:
        >>> untied(Labels(tie=torch.tensor([False, True])))
        tensor([ True, False])
    """
    return True if labels.tie is None else ~labels.tie


def graded(labels: Labels, gap: Tensor, what: str) -> tuple[Bool[Tensor, " pair"], Float[Tensor, " pair"]]:
    """Which pairs have a winner, and the grade gap of every pair in dataset units (0 where a tie has none).

    Raises:
        BadInput: a pair with a winner has no grade gap; the message begins with `what`.

    Example:
        >>> graded(Labels(strength=torch.tensor([2.0])), torch.zeros(1), "a margin")
        (tensor([True]), tensor([2.]))
    """
    keep = torch.ones_like(gap, dtype=torch.bool) if labels.tie is None else ~labels.tie
    grades = grade_gap(labels)
    if grades is None:
        grades = torch.full_like(gap, float("nan"))
    if bool((torch.isnan(grades) & keep).any()):
        raise BadInput(f"{what} needs a strength or two grades for every pair; a pair has neither")
    return keep, torch.nan_to_num(grades)


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
