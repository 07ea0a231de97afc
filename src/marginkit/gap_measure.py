"""How far apart the data says a pair is, and what of training falls on near and on far pairs.

A pair's measure is the gap the recipe's target asks for (logits) where it asks for a finite one of different sizes,
else the grade gap (dataset units). It depends on the labels alone, so it stays the same all through a run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from marginkit.core.loss import Loss, PairLoss
from marginkit.core.tensors import Labels
from marginkit.data.encoded import EncodedGroup, EncodedGroups
from marginkit.errors import BadInput
from marginkit.models.packing import Batch, labels_of, pair_columns

if TYPE_CHECKING:
    from marginkit.metering import Meter

PARTS = ("small", "middle", "large")
GRADIENT_METRICS = tuple(f"{what}/{part}_gaps" for what in ("gradient", "pairs") for part in PARTS)
_SAMPLE = 20_000  # groups that the bounds are taken from
_BUCKETS = 5


@dataclass(frozen=True, slots=True)
class GapMeasure:
    """The measure of a run's pairs.

    Args:
        name: target_gap (logits) or grade_gap (dataset units).
        bounds: what separates small, middle and large: a third of the training pairs each, as far as grades allow.
    """

    name: str
    bounds: tuple[float, float]

    def of(self, recipe: Loss, labels: Labels, count: int) -> Tensor:
        """[P] the measure; NaN where a pair has none."""
        return _target(recipe, labels, count) if self.name == "target_gap" else _grades(labels, count)

    def part_of(self, values: Tensor) -> Tensor:
        """[P] 0, 1 or 2: small, middle, large."""
        return (values > self.bounds[0]).long() + (values > self.bounds[1]).long()


def measure_of(recipe: Loss, groups: EncodedGroups) -> GapMeasure | None:
    """The measure that tells the training pairs of a run apart; None where nothing does.

    Args:
        recipe: the loss.
        groups: the training groups; bounds are taken from the first 20,000.
    """
    if recipe.per == "response" or recipe.target is None:
        return None
    some: Sequence[EncodedGroup] = [groups[at] for at in range(min(len(groups), _SAMPLE))]
    labels = labels_of(pair_columns(some, torch.float64))
    count = sum(len(group.chosen) for group in some)
    for name, values in (("target_gap", _target(recipe, labels, count)), ("grade_gap", _grades(labels, count))):
        finite = values[torch.isfinite(values)].numpy()
        if len(finite) > 1 and float(np.ptp(finite)) > 0:
            low, high = np.quantile(finite, [1 / 3, 2 / 3])
            return GapMeasure(name, (float(low), float(high)))
    return None


def _target(recipe: Loss, labels: Labels, count: int) -> Tensor:
    try:
        values = recipe.target_gap(labels, count)
    except BadInput:  # evidence that only some pairs have
        return torch.full((count,), math.nan, dtype=torch.float64)
    return torch.where(torch.isfinite(values), values, torch.full_like(values, math.nan))


def _grades(labels: Labels, count: int) -> Tensor:
    apart = torch.full((count,), math.nan, dtype=torch.float64)
    if labels.grade is not None and labels.grade.ndim == 2:
        apart = (labels.grade[:, 0] - labels.grade[:, 1]).abs()
    return apart if labels.strength is None else torch.where(torch.isnan(labels.strength), apart, labels.strength)


def weigh(meter: Meter, measure: GapMeasure | None, batch: Batch, result: PairLoss, total: Tensor) -> None:
    """Add how much of the gradient comes from near and from far pairs: `sum |dL/dreward|` in a part / that of all.

    Only the few operations between the rewards and the loss are gone back through, not the model.

    Args:
        meter: what the shares are added to, beside the shares of the pairs that count.
        measure: of the run; None adds nothing.
        batch: a micro-batch, with the measure of its pairs as `apart` and what each counts as `share`.
        result: its loss, with its graph; nothing is added where rewards have no part in it.
        total: what is minimised.
    """
    rewards = result.rewards.value
    if measure is None or rewards.ndim != 2 or not rewards.requires_grad:
        return
    found: tuple[Tensor | None, ...] = torch.autograd.grad(total, rewards, retain_graph=True, allow_unused=True)
    slope = found[0]
    if slope is None:
        return
    size = slope.detach().abs().sum(1)
    known, part = torch.isfinite(batch["apart"]) & (batch["share"] > 0), measure.part_of(batch["apart"])
    for number, name in enumerate(PARTS):
        inside = known & (part == number)
        meter.add(f"gradient/{name}_gaps", size[inside], size[known].sum())
        meter.add(f"pairs/{name}_gaps", inside.to(size.dtype), known.sum())


def snapshot(name: str, values: npt.NDArray[Any], gap: npt.NDArray[Any]) -> dict[str, Any] | None:
    """Mean gap in up to five buckets of the measure, equal in pairs as far as ties allow; None with fewer than two.

    Args:
        name: of the measure.
        values: `[pair]` the measure.
        gap: `[pair]` logits.
    """
    here = np.isfinite(values) & np.isfinite(gap)
    values, gap = values[here], gap[here]
    edges = np.unique(np.quantile(values, np.arange(1, _BUCKETS) / _BUCKETS)) if len(values) else np.array([])
    code = np.searchsorted(edges, values, side="left")
    parts = [code == number for number in range(len(edges) + 1)]
    parts = [part for part in parts if part.any()]
    if len(parts) < 2:
        return None
    return {
        "measure": name,
        "target": [float(values[part].mean()) for part in parts],
        "gap": [float(gap[part].mean()) for part in parts],
        "count": [int(part.sum()) for part in parts],
    }
