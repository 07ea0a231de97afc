"""What the evidence of some groups says, in a few numbers: the same before grading and after."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from marginkit.data.graded import pairs_inside
from marginkit.data.grades import pair_evidence
from marginkit.groups import Groups

Array = npt.NDArray[np.float64]
SATURATED = math.log(99)
"""A gap of so many logits is a probability of .99: a hard label in all but name."""


def describe_evidence(groups: Groups) -> dict[str, Any]:
    """How much of the data carries a target that needs no gamma, and what those targets look like.

    A pair's target is what training takes: its prob as a logit, else its target gap, else the difference of utilities.
    Where the data has no pair, every two responses of a prompt are taken.

    Args:
        groups: any groups.

    Returns:
        Counts (`groups, responses, with a utility, pairs, with a target`), `gap` (its 5, 50 and 95% quantiles, logits,
        without sign), `saturated` (share of gaps beyond 99%), `ties` (share of 0), `agrees with the label` (share of
        the gaps other than 0 in which chosen is the better one); None where there is nothing.

    Example:
        >>> from marginkit.records import Group, Pair, Response
        >>> group = Group("a", "?", (Response("x"), Response("y")), pairs=(Pair(0, 1, target_gap=1.0),))
        >>> facts = describe_evidence(Groups.from_iterable([group]))
        >>> facts["with a target"], facts["gap"], facts["agrees with the label"]
        (1, [1.0, 1.0, 1.0], 1.0)
    """
    sizes: list[int] = []
    utilities: list[float] = []
    gaps: list[float] = []
    pairs = 0
    for group in groups:
        sizes.append(len(group.responses))
        utilities += [math.nan if response.utility is None else response.utility for response in group.responses]
        pairs += len(group.pairs)
        for pair in group.pairs:
            found = pair_evidence(group, pair)
            if found.prob is not None:
                gaps.append(_logit(found.prob))
            elif found.target_gap is not None:
                gaps.append(found.target_gap)
    gap, utility = np.array(gaps, dtype=float), np.array(utilities, dtype=float)
    if not pairs:
        left, right = pairs_inside(np.cumsum([0, *sizes]))
        gap = utility[left] - utility[right]
        gap = gap[~np.isnan(gap)]
    unequal = gap[gap != 0]
    return {
        "groups": len(sizes),
        "responses": len(utilities),
        "with a utility": int((~np.isnan(utility)).sum()),
        "pairs": pairs,
        "with a target": len(gaps),
        "gap": [round(float(q), 6) for q in np.quantile(np.abs(gap), [0.05, 0.5, 0.95])] if len(gap) else None,
        "saturated": float(np.mean(np.abs(gap) >= SATURATED)) if len(gap) else None,
        "ties": float(np.mean(gap == 0)) if len(gap) else None,
        "agrees with the label": float(np.mean(unequal > 0)) if pairs and len(unequal) else None,
    }


def _logit(prob: float) -> float:
    """As a logit; certainty as that of one in a million."""
    bounded = min(max(prob, 1e-6), 1 - 1e-6)
    return math.log(bounded / (1 - bounded))
