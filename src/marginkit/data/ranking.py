"""Pairs from a ranking of the responses: best against worst, a random other, all others; neighbours."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

from marginkit.records import Group

Ordered = list[tuple[int, int]]
"""(better, worse) index pairs; equal values in the order of the responses."""


def values_of(group: Group, rewards: Sequence[float] | None = None) -> list[tuple[float, int]]:
    """What the responses are ranked by, with their index: the rewards, else utilities if all have one, else grades.

    Args:
        group: the group.
        rewards: one a response, NaN where absent.

    Returns:
        The responses that have a value, in their order; fewer than two cannot be ranked.
    """
    if rewards is not None:
        return [(value, at) for at, value in enumerate(rewards) if value == value]
    utilities = [(r.utility, at) for at, r in enumerate(group.responses) if r.utility is not None]
    if len(utilities) == len(group.responses):
        return utilities
    return [(r.grade, at) for at, r in enumerate(group.responses) if r.grade is not None]


def _best(values: Sequence[tuple[float, int]]) -> tuple[float, int]:
    return max(values, key=lambda value: (value[0], -value[1]))  # the first of equals, so runs agree


def best_worst(values: Sequence[tuple[float, int]]) -> Ordered:
    """The best against the worst (West-of-N).

    Example:
        >>> best_worst([(2.0, 0), (5.0, 1), (1.0, 2)])
        [(1, 2)]
    """
    best = _best(values)
    worst = min(values, key=lambda value: (value[0], value[1] == best[1], value[1]))
    return [(best[1], worst[1])]


def best_random(values: Sequence[tuple[float, int]], seed: str) -> Ordered:
    """The best against a random other one, as in the binarised UltraFeedback of HuggingFaceH4.

    Args:
        values: (value, index) of each response.
        seed: draws the other one.

    Example:
        >>> best_random([(2.0, 0), (5.0, 1)], "0")
        [(1, 0)]
    """
    best = _best(values)[1]
    return [(best, random.Random(seed).choice([at for _, at in values if at != best]))]


def best_vs_others(values: Sequence[tuple[float, int]]) -> Ordered:
    """The best against each other one.

    Example:
        >>> best_vs_others([(2.0, 0), (5.0, 1), (1.0, 2)])
        [(1, 0), (1, 2)]
    """
    best = _best(values)[1]
    return [(best, at) for _, at in values if at != best]


def adjacent(values: Sequence[tuple[float, int]]) -> Ordered:
    """Neighbours in the ranking: first against second, second against third ...

    Example:
        >>> adjacent([(2.0, 0), (5.0, 1), (1.0, 2)])
        [(1, 0), (0, 2)]
    """
    order = [at for _, at in sorted(values, key=lambda value: (-value[0], value[1]))]
    return list(pairwise(order))
