"""The plan of an epoch: which groups make up each optimizer step, on each rank, in each micro-batch.

A pure function of seed, epoch, ranks and lengths: every rank computes the same plan, nothing is sent around, and a
resumed run finds its place by counting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from marginkit.data.encoded import Shape

_OPEN = 32  # micro-batches that may still take a group, while a rank's share is packed


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Groups whose loss is computed together.

    Args:
        groups: which.
        real: false for a filler that keeps ranks in step and counts for nothing.
        passes: forward passes it takes on every rank: more than 1 where a group is larger than the token budget.
    """

    groups: tuple[int, ...]
    real: bool = True
    passes: int = 1


@dataclass(slots=True)
class _Pass:
    """Groups of one forward pass while they are collected, and what they come to."""

    groups: list[int]
    rows: int = 0
    longest: int = 0
    packed: int = 0

    def tokens(self, shape: Shape, packed: bool) -> int:
        """Tokens of the pass with one more group."""
        if packed:
            return self.packed + shape.packed
        return (self.rows + len(shape.responses)) * max(self.longest, shape.longest)

    def add(self, group: int, shape: Shape) -> None:
        self.groups.append(group)
        self.rows += len(shape.responses)
        self.longest = max(self.longest, shape.longest)
        self.packed += shape.packed


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """How groups are cut into steps and micro-batches.

    Args:
        shapes: the lengths of each group.
        prompts_per_step: groups of one optimizer step, all ranks together.
        tokens_per_micro_batch: tokens of one forward pass, padding included. A group that is larger takes several
            passes, each with the prompt and some of its responses; a single larger response is still one pass.
        prompts_per_micro_batch: at most so many groups a pass, if given.
        world_size: ranks.
        seed: of the order.
        packed: rows are packed (a prompt once) or padded (a row a response).
        cost: of a group, by which work is spread over ranks; default: its tokens.
    """

    shapes: Sequence[Shape]
    prompts_per_step: int
    tokens_per_micro_batch: int
    prompts_per_micro_batch: int | None = None
    world_size: int = 1
    seed: int = 0
    packed: bool = False
    cost: Callable[[Shape], float] | None = field(default=None, compare=False)

    def __len__(self) -> int:
        """Optimizer steps in an epoch."""
        return -(-len(self.shapes) // self.prompts_per_step)

    def steps(self, epoch: int) -> Iterator[list[list[MicroBatch]]]:
        """Each optimizer step of an epoch: for each rank its micro-batches, as many on every rank."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.shapes))
        for start in range(0, len(order), self.prompts_per_step):
            yield self.step([int(index) for index in order[start : start + self.prompts_per_step]])

    def step(self, groups: Sequence[int]) -> list[list[MicroBatch]]:
        """Spread the groups of a step over ranks by cost, and pack each rank's share under the token budget."""
        costs = {index: self._cost(index) for index in groups}
        shares: list[list[int]] = [[] for _ in range(self.world_size)]
        loads = [0.0] * self.world_size
        for group in sorted(groups, key=lambda index: (-costs[index], index)):
            rank = loads.index(min(loads))
            shares[rank].append(group)
            loads[rank] += costs[group]
        batches = [self._pack(share) for share in shares]
        most = max(map(len, batches))
        smallest = min(groups, key=lambda index: (costs[index], index))
        filler = MicroBatch((smallest,), real=False, passes=len(self.parts(smallest)))
        filled = [own + [filler] * (most - len(own)) for own in batches]
        passes = [max(own[slot].passes for own in filled) for slot in range(most)]
        return [[replace(micro, passes=count) for micro, count in zip(own, passes, strict=True)] for own in filled]

    def parts(self, index: int) -> list[list[int]]:
        """The responses of a group, cut so that each part is within the token budget, if that can be."""
        shape = self.shapes[index]
        parts: list[list[int]] = [[]]
        for number in range(len(shape.responses)):
            if parts[-1] and self._tokens(shape.part([*parts[-1], number])) > self.tokens_per_micro_batch:
                parts.append([])
            parts[-1].append(number)
        return parts

    def tokens(self, micro: MicroBatch) -> int:
        """Tokens that a micro-batch computes, padding and repeated prompts included; fillers of passes apart."""
        if micro.passes > 1 and len(micro.groups) == 1:
            (index,) = micro.groups
            return sum(self._tokens(self.shapes[index].part(part)) for part in self.parts(index))
        own = _Pass([])
        for group in micro.groups[:-1]:
            own.add(group, self.shapes[group])
        return own.tokens(self.shapes[micro.groups[-1]], self.packed)

    def in_order(self) -> Iterator[tuple[int, ...]]:
        """All groups once, by length: the plan of a scoring pass."""
        current = _Pass([])
        for group in sorted(range(len(self.shapes)), key=lambda index: (self._tokens(self.shapes[index]), index)):
            if current.groups and not self._fits(current, group):
                yield tuple(current.groups)
                current = _Pass([])
            current.add(group, self.shapes[group])
        if current.groups:
            yield tuple(current.groups)

    def _pack(self, groups: Sequence[int]) -> list[MicroBatch]:
        """First fit, largest first; a group that takes several passes comes first, and alone."""
        passes: list[_Pass] = []
        for group in sorted(groups, key=lambda index: (-self._tokens(self.shapes[index]), index)):
            own = next((one for one in passes[-_OPEN:] if self._fits(one, group)), None)
            if own is None:
                own = _Pass([])
                passes.append(own)
            own.add(group, self.shapes[group])
        made = [
            MicroBatch(tuple(own.groups), passes=len(self.parts(own.groups[0])) if len(own.groups) == 1 else 1)
            for own in passes
        ]
        return sorted(made, key=lambda micro: -micro.passes)

    def _tokens(self, shape: Shape) -> int:
        return shape.packed if self.packed else shape.padded

    def _cost(self, index: int) -> float:
        shape = self.shapes[index]
        return self._tokens(shape) if self.cost is None else self.cost(shape)

    def _fits(self, own: _Pass, group: int) -> bool:
        if self.prompts_per_micro_batch is not None and len(own.groups) >= self.prompts_per_micro_batch:
            return False
        return own.tokens(self.shapes[group], self.packed) <= self.tokens_per_micro_batch
