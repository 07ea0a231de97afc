"""The scale of rewards: one number that makes them logits, fitted on pairs with labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from marginkit.data.graded import response_starts
from marginkit.data.grades import pair_evidence
from marginkit.errors import BadInput
from marginkit.groups import Groups

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Temperature:
    """What rewards are multiplied by.

    Args:
        scale: logits per unit of reward.
        pairs: how many pairs it was fitted on.
        nll_before: mean cross-entropy of their labels at scale 1, nats.
        nll_after: the same at `scale`.
        accuracy: share of the pairs with a winner in which the better one has the higher reward.
    """

    scale: float
    pairs: int
    nll_before: float
    nll_after: float
    accuracy: float

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {name: getattr(self, name) for name in self.__slots__}


def fit_temperature(gaps: npt.ArrayLike, probs: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Temperature:
    """The T > 0 that minimises the cross-entropy of sigmoid(T * gap) to prob: convex, by Newton's method.

    Args:
        gaps: [pair] reward(chosen) - reward(rejected).
        probs: [pair] P(chosen is better): 1 for a hard label, 1/2 for a tie.
        weights: [pair] >= 0.

    Raises:
        BadInput: no pair with a gap, labels that no finite T is best for, or rewards that go against the labels.

    Example:
        >>> round(fit_temperature([1.0] * 4, [1, 1, 1, 0]).scale, 4)  # log 3
        1.0986
    """
    gap, prob = np.asarray(gaps, dtype=float), np.asarray(probs, dtype=float)
    weight = np.ones(len(gap)) if weights is None else np.asarray(weights, dtype=float)
    use = ~np.isnan(gap) & (weight > 0)
    gap, prob, weight = gap[use], prob[use], weight[use]
    if not np.any(gap):
        raise BadInput(
            "no pair with a label has two different rewards, so their scale cannot be fitted; set temperature=1"
        )
    toward = np.where(gap > 0, prob, 1 - prob)[gap != 0]
    if (toward == 1).all():
        raise BadInput(
            f"the rewards order all {len(toward)} labelled pairs rightly, so no finite scale is best; they may come from "
            "a model trained on these labels: use how=crossfit, or set temperature=1"
        )

    def nll(scale: float) -> float:
        at = scale * gap
        losses = prob * np.logaddexp(0, -at) + (1 - prob) * np.logaddexp(0, at)
        return float(np.average(losses, weights=weight))

    unit = float(np.sqrt(np.average(gap**2, weights=weight)))
    scale = 0.0
    for _ in range(100):
        p = expit(scale * gap)
        slope = float(np.sum(weight * gap * (p - prob)))
        curve = float(np.sum(weight * gap**2 * p * (1 - p)))
        step = -slope / max(curve, 1e-300)
        while nll(scale + step) > nll(scale) + 1e-12 and abs(step) * unit > 1e-12:
            step /= 2
        scale += step
        if abs(step) * unit < 1e-10:
            break
    if scale <= 0:
        raise BadInput(
            f"the rewards go against the labels (best scale {scale:.3g}, not above 0): is the order of the pairs, or the "
            "sign of the rewards, the other way round? temperature=1 takes them as they are"
        )
    won = (prob != 0.5) & (gap != 0)
    accuracy = float(np.mean((gap > 0)[won] == (prob > 0.5)[won])) if won.any() else float("nan")
    return Temperature(scale, len(gap), nll(1.0), nll(scale), accuracy)


def labelled_gaps(groups: Groups, rewards: Array) -> tuple[Array, Array, Array]:
    """Gap, label and weight of every pair in the data: of the split `train` where there is one, else of all.

    A label is the vote share or probability where there is one, 1/2 for a tie, else 1.

    Args:
        groups: groups with pairs.
        rewards: [response] flat.

    Example:
        >>> from marginkit.records import Group, Pair, Response
        >>> group = Group("a", "?", (Response("x"), Response("y")), pairs=(Pair(1, 0),))
        >>> [column.tolist() for column in labelled_gaps(Groups.from_iterable([group]), np.array([0.5, 2.0]))]
        [[1.5], [1.0], [1.0]]
    """
    train_only = "train" in groups.column("split")
    rows = []
    for start, group in zip(response_starts(groups), groups, strict=False):
        if train_only and group.split != "train":
            continue
        for pair in group.pairs:
            prob = pair_evidence(group, pair).prob
            label = 0.5 if pair.tie else 1.0 if prob is None else prob
            rows.append((rewards[start + pair.chosen] - rewards[start + pair.rejected], label, pair.weight))
    gap, label, weight = np.array(rows, dtype=float).reshape(-1, 3).T
    return gap, label, weight
