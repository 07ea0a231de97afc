"""RSO, statistical rejection sampling (Liu et al., arXiv 2309.06657): N responses thinned to those of a better policy.

Target: pi_r proportional to pi_sft * exp(r / beta). Passes over the remaining candidates accept each with probability
exp((r - max remaining r) / beta) until enough are taken. beta -> 0 takes the best, a large one a random few.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from marginkit.data.signals import Signals
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.records import Group


def rejection_sample(rewards: Sequence[float], count: int, beta: float, rng: random.Random) -> list[int]:
    """Indices of `count` candidates, in their order.

    The candidates are shuffled before each pass, which the published loop does not do: it stops inside a pass, so a
    large beta would return the first of them. Equal texts are candidates of their own.

    Args:
        rewards: of each candidate, in the unit of beta.
        count: how many, at most all.
        beta: temperature, above 0.
        rng: draws.

    Example:
        >>> rejection_sample([0.0, 3.0, 1.0], 2, 1e-6, random.Random(0))
        [1, 2]
    """
    left = list(range(len(rewards)))
    taken: list[int] = []
    while left and len(taken) < count:
        rng.shuffle(left)
        highest = max(rewards[at] for at in left)
        for at in list(left):
            # the best of a pass is always accepted, so that every pass takes one
            if rng.random() < np.exp((rewards[at] - highest) / beta):
                taken.append(at)
                left.remove(at)
                if len(taken) == count:
                    break
    return sorted(taken)


def thin_responses(
    groups: Groups, signals: Signals, *, count: int = 8, beta: float = 0.5, seed: int = 0
) -> tuple[Groups, Signals]:
    """Keep `count` responses a prompt by rejection sampling; pairs and comparisons go, to be made anew.

    Args:
        groups: groups with many responses.
        signals: their rewards.
        count: of the paper: 8 of 64.
        beta: of the paper.
        seed: of the draws, with the group's id.

    Returns:
        The groups, and the signals of what they kept. `dropped` counts "responses not sampled", "responses without a
        reward" and "no response with a reward" (groups). Groups with fewer than `count` rewarded ones keep them all.

    Raises:
        BadInput: count below 2, or beta not above 0.
    """
    if count < 2 or not beta > 0:
        raise BadInput(f"rso: count={count}, beta={beta}: keep 2 responses or more, with beta above 0")
    signals.check(groups)
    dropped = Counter(groups.dropped)
    kept: list[int] = []
    sizes: list[int] = []

    def thinned() -> Iterator[Group]:
        for number, group in enumerate(groups):
            rewards = signals.reward[signals.rows(number)].tolist()
            known = [at for at, reward in enumerate(rewards) if reward == reward]
            rng = random.Random(f"{seed}\0{group.id}")
            taken = [known[at] for at in rejection_sample([rewards[at] for at in known], count, beta, rng)]
            dropped["responses without a reward"] += len(rewards) - len(known)
            dropped["responses not sampled"] += len(known) - len(taken)
            if taken:
                kept.extend(int(signals.starts[number]) + at for at in taken)
                sizes.append(len(taken))
                yield replace(group, responses=tuple(group.responses[at] for at in taken), pairs=(), comparisons=())
            else:
                dropped["no response with a reward"] += 1

    made = Groups.from_iterable(thinned())
    made.dropped = {reason: count for reason, count in dropped.items() if count}
    return made, signals.take(kept, sizes)
