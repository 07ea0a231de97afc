"""Optimizer steps as the items of a dataset: a key is a micro-batch, its item the groups in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import Dataset

from marginkit.batching import BatchPlan, MicroBatch
from marginkit.data.encoded import EncodedGroups


class Steps(Dataset[list[tuple[MicroBatch, list[Any]]]]):
    """Looks up the groups of an optimizer step: the key is the step's micro-batches."""

    def __init__(self, groups: EncodedGroups) -> None:
        self.groups = groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, key: Any) -> Any:
        return key, [self.groups[index] for index in key.groups]


class StepSampler:
    """Yields, for this rank, the micro-batches of each optimizer step of an epoch."""

    def __init__(self, plan: BatchPlan, rank: int) -> None:
        self.plan, self.rank, self.epoch = plan, rank, 0

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        for step in self.plan.steps(self.epoch):
            yield step[self.rank]
