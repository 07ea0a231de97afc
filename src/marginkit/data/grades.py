"""What is known of a pair: a probability, a gap in logits, a gap in dataset units; and the scale of the grades."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from marginkit.errors import BadInput
from marginkit.records import Group, Pair


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a pair; None where nothing is.

    Args:
        prob: observed P(chosen is better), in [0, 1]: a vote share or a given probability.
        target_gap: how far apart the two should be, logits.
        grade_gap: how far apart the grades are, dataset units; >= 0 toward chosen.
        tie: the evidence is equal; a consumer takes P = 0.5.
    """

    prob: float | None
    target_gap: float | None
    grade_gap: float | None
    tie: bool


def pair_evidence(group: Group, pair: Pair) -> Evidence:
    """The evidence about one pair of a group.

    prob = (for + ties / 2) / (for + against + ties), else `Pair.prob`. The raw share needs no prior: the cross-entropy
    to it is, up to a factor, the binomial likelihood of the single votes, which a prior would bias.
    target_gap = `Pair.target_gap`, else utility(chosen) - utility(rejected).
    grade_gap = `Pair.strength`, else grade(chosen) - grade(rejected).

    Args:
        group: the group.
        pair: one of its pairs.

    Returns:
        The evidence; votes > prob > strength > grades where several speak of the same thing.

    Example:
        >>> from marginkit.records import Response
        >>> group = Group("a", "Name a fruit.", (Response("Apple.", grade=4.0), Response("Carrot.", grade=1.0)))
        >>> pair_evidence(group, Pair(0, 1, votes=(3, 1, 1)))
        Evidence(prob=0.7, target_gap=None, grade_gap=3.0, tie=False)
    """
    chosen, rejected = group.responses[pair.chosen], group.responses[pair.rejected]
    prob, gap, strength = pair.prob, pair.target_gap, pair.strength
    if pair.votes is not None:
        wins, losses, ties = pair.votes
        prob = (wins + ties / 2) / (wins + losses + ties)
    if gap is None and chosen.utility is not None and rejected.utility is not None:
        gap = chosen.utility - rejected.utility
    if strength is None and chosen.grade is not None and rejected.grade is not None:
        strength = chosen.grade - rejected.grade
    return Evidence(prob, gap, strength, pair.tie)


def suggest_gamma(groups: Iterable[Group]) -> float | None:
    """A gamma for target gap = gamma * grade gap, so that the median gap means P = 0.75.

    gamma = log(3) / median(|grade gap| over pairs where it is not 0). Ours, not a paper's.

    Args:
        groups: groups with pairs.

    Returns:
        Logits per dataset unit; None where no pair has a grade gap other than 0.

    Example:
        >>> from marginkit.records import Response
        >>> group = Group("a", "?", (Response("x", grade=3.0), Response("y", grade=1.0)), pairs=(Pair(0, 1),))
        >>> round(suggest_gamma([group]), 4)
        0.5493
    """
    gaps = [abs(gap) for group in groups for pair in group.pairs if (gap := pair_evidence(group, pair).grade_gap)]
    return math.log(3) / statistics.median(gaps) if gaps else None


def just_noticeable_difference(gamma: float) -> float:
    """The grade gap at which the better answer is picked three times in four: ln(3) / gamma, dataset units.

    sigmoid(gamma * gap) = 3/4 exactly where gap = ln(3) / gamma: a gamma said in words.

    Args:
        gamma: logits per dataset unit, > 0.

    Raises:
        BadInput: gamma is not a positive number.

    Example:
        >>> round(just_noticeable_difference(0.5493), 2)
        2.0
    """
    if not (math.isfinite(gamma) and gamma > 0):
        raise BadInput(f"gamma={gamma}: give a number > 0, logits per dataset unit")
    return math.log(3) / gamma
