"""The pairs that a model is most sure of and wrong about."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from marginkit.evaluation.calibration import sigmoid
from marginkit.evaluation.pair_columns import PairColumns, nll

MOST = 200
A_PROMPT = 2
"""Pairs of one prompt at most: a prompt with many responses would fill the list by itself."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """A pair that a model is wrong about.

    Args:
        row: in the pairs table.
        group: the group's id.
        pair: its number in the group.
        gap: what the model says, logits; negative: the other way round.
        prob: the model's P(chosen is better).
        label: the P that was observed; 1 for a hard label.
        nll: what it costs, nats.
    """

    row: int
    group: str
    pair: int
    gap: float
    prob: float
    label: float
    nll: float


def confident_mistakes(pairs: pa.Table, most: int = MOST, a_prompt: int = A_PROMPT) -> tuple[list[Mistake], int]:
    """Pairs whose sides the model takes the wrong way round, by the excess of its NLL over that of the label itself.

    Args:
        pairs: a table in `PAIRS_SCHEMA`.
        most: how many at most.
        a_prompt: of one group at most.

    Returns:
        The worst first, and how many mistakes there are in all. Ties, and labels of 1/2, have no wrong side.

    Example:
        >>> table = pa.table({
        ...     "group": ["a", "b"], "pair": [0, 0], "cluster": ["a", "b"], "tie": [False, False], "gap": [-2.0, 1.0],
        ...     "reward_chosen": [0.0, 1.0], "reward_rejected": [2.0, 0.0],
        ...     "label_prob": pa.nulls(2, pa.float64()), "target_gap": pa.nulls(2, pa.float64()),
        ... })
        >>> found, count = confident_mistakes(table)
        >>> [(one.group, round(one.nll, 2)) for one in found], count
        ([('a', 2.13)], 1)
    """
    own = PairColumns.read(pairs)
    label = own.label
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.nan_to_num(label * np.log(label)) - np.nan_to_num((1 - label) * np.log1p(-label))
    excess = nll(own.gap, label) - entropy
    wrong = ~np.isnan(label) & (label != 0.5) & ~own.tie & ((own.gap > 0) != (label > 0.5))
    places = np.flatnonzero(wrong)
    order = places[np.argsort(-excess[places], kind="stable")]
    groups, numbers = pairs["group"], pairs["pair"]
    seen: Counter[str] = Counter()
    found: list[Mistake] = []
    for row in order.tolist():
        if len(found) == most:
            break
        group = groups[row].as_py()
        if seen[group] == a_prompt:
            continue
        seen[group] += 1
        gap = float(own.gap[row])
        prob = float(sigmoid(gap))
        cost = float(nll(own.gap[row], label[row]))
        found.append(Mistake(row, group, int(numbers[row].as_py()), gap, prob, float(label[row]), cost))
    return found, int(wrong.sum())
