"""The plan of an epoch: which groups make up each optimizer step, on each rank, in each micro-batch.

A pure function of seed, epoch, ranks and sizes: every rank computes the same plan, nothing is sent around, and a
resumed run finds its place by counting.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Groups of one forward pass; `real` is false for a filler that keeps ranks in step and counts for nothing."""

    groups: tuple[int, ...]
    real: bool = True


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """How groups are cut into steps and micro-batches.

    Args:
        rows: responses of each group.
        lengths: longest sequence of each group, in tokens.
        prompts_per_step: groups of one optimizer step, all ranks together.
        tokens_per_micro_batch: padded tokens of one forward pass; a single larger group is still one pass.
        prompts_per_micro_batch: at most so many groups a pass, if given.
        world_size: ranks.
        seed: of the order.
    """

    rows: Sequence[int]
    lengths: Sequence[int]
    prompts_per_step: int
    tokens_per_micro_batch: int
    prompts_per_micro_batch: int | None = None
    world_size: int = 1
    seed: int = 0

    def __len__(self) -> int:
        """Optimizer steps in an epoch."""
        return -(-len(self.rows) // self.prompts_per_step)

    def steps(self, epoch: int) -> Iterator[list[list[MicroBatch]]]:
        """Each optimizer step of an epoch: for each rank its micro-batches, as many on every rank."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
        for start in range(0, len(order), self.prompts_per_step):
            yield self.step([int(index) for index in order[start : start + self.prompts_per_step]])

    def step(self, groups: Sequence[int]) -> list[list[MicroBatch]]:
        """Spread the groups of a step over ranks by cost, and pack each rank's share under the token budget."""
        shares: list[list[int]] = [[] for _ in range(self.world_size)]
        loads = [0] * self.world_size
        for group in sorted(groups, key=lambda index: (-self.rows[index] * self.lengths[index], index)):
            rank = loads.index(min(loads))
            shares[rank].append(group)
            loads[rank] += self.rows[group] * self.lengths[group]
        batches = [self._pack(share) for share in shares]
        most = max(map(len, batches))
        smallest = min(groups, key=lambda index: (self.rows[index] * self.lengths[index], index))
        return [own + [MicroBatch((smallest,), real=False)] * (most - len(own)) for own in batches]

    def _pack(self, groups: Sequence[int]) -> list[MicroBatch]:
        batches: list[MicroBatch] = []
        current: list[int] = []
        rows = width = 0
        for group in sorted(groups, key=lambda index: (self.lengths[index], index)):
            new_rows, new_width = rows + self.rows[group], max(width, self.lengths[group])
            full = new_rows * new_width > self.tokens_per_micro_batch
            if self.prompts_per_micro_batch is not None:
                full = full or len(current) == self.prompts_per_micro_batch
            if current and full:
                batches.append(MicroBatch(tuple(current)))
                current, new_rows, new_width = [], self.rows[group], self.lengths[group]
            current.append(group)
            rows, width = new_rows, new_width
        if current:
            batches.append(MicroBatch(tuple(current)))
        return batches

    def in_order(self) -> list[MicroBatch]:
        """All groups once, by length: the plan of a scoring pass."""
        return self._pack(range(len(self.rows)))
