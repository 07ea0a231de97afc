"""The metrics of training and evaluation steps, under TRL's names where it has one, so that dashboards keep working."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from marginkit.core.loss import PairLoss
from marginkit.core.tensors import SequenceScores
from marginkit.evaluation.calibration import expected_calibration_error
from marginkit.models.packing import Batch, number_dtype


class Meter:
    """Sums and counts by name, on the device; reduced once a log."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor, count: float | None = None) -> None:
        """Add values; `count` says how many they stand for."""
        number = number_dtype(values.device)
        counted = values.new_tensor(float(values.numel()) if count is None else count, dtype=number)
        both = torch.stack([values.detach().to(number).sum(), counted])
        self.sums[name] = self.sums[name] + both if name in self.sums else both

    def reduce(self, accelerator: Any, names: Sequence[str]) -> dict[str, float]:
        """The means since the last call, over all ranks."""
        empty = torch.zeros(2, dtype=torch.float64)
        table = torch.stack([self.sums.get(name, empty).cpu().double() for name in names])
        table = accelerator.reduce(table.to(accelerator.device, torch.float32), "sum").cpu().double()
        self.sums = {}
        return {name: float(total / count) for name, (total, count) in zip(names, table, strict=True) if count > 0}


PAIR_METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "target/gap",
    "slack/violation_rate",
)
SFT_METRICS = ("nll/token",)


def measure(meter: Meter, result: PairLoss, scores: SequenceScores, batch: Batch) -> None:
    """Add what a training micro-batch shows of its kept pairs."""
    add = meter.add
    if result.target is None:
        add("nll/token", result.loss, count=float(batch["length"].sum()))
        return
    keep = result.target.keep
    gap = result.rewards.gap.detach()[keep]
    add("rewards/chosen", result.rewards.chosen[keep])
    add("rewards/rejected", result.rewards.rejected[keep])
    add("rewards/margins", gap)
    add("rewards/accuracies", gap > 0)
    if scores.logp is not None:
        add("logps/chosen", scores.logp[batch["pairs"][:, 0]][keep])
        add("logps/rejected", scores.logp[batch["pairs"][:, 1]][keep])
    wanted = (torch.logit(result.target.prob) + result.target.margin)[keep]
    add("target/gap", wanted[torch.isfinite(wanted)])
    slack = result.target.scale[keep] * gap - result.target.margin[keep]
    add("slack/violation_rate", slack < 0)


def rows_of(
    result: PairLoss, weighted: Tensor, scores: SequenceScores, batch: Batch
) -> dict[int, dict[str, list[float]]]:
    """Values of every pair (or response), by the group's row: an id need not be unique."""
    columns = {"share": batch["share"], "weighted": weighted}
    if result.target is None:
        counts = torch.bincount(batch["owner"])
        columns |= {"tokens": counts, "loss": result.loss}
    else:
        columns |= {
            "chosen": result.rewards.chosen,
            "rejected": result.rewards.rejected,
            "label": _labels(batch),
        }
        if scores.logp is not None:
            both = scores.logp[batch["pairs"]]
            columns |= {"logp_chosen": both[:, 0], "logp_rejected": both[:, 1]}
    lists = {name: value.cpu().double().tolist() for name, value in columns.items()}
    rows: dict[int, dict[str, list[float]]] = {number: {c: [] for c in lists} for number in batch["rows"]}
    for position, group in enumerate(names_of(batch, "rows")):
        for name, values in lists.items():
            rows[group][name].append(values[position])
    return rows


def _labels(batch: Batch) -> Tensor:
    """Observed P(chosen is better); 1 for a hard label, NaN for a tie with no observed probability."""
    label: Tensor = torch.where(torch.isnan(batch["prob"]), torch.ones_like(batch["prob"]), batch["prob"])
    return torch.where(batch["tie"] & torch.isnan(batch["prob"]), torch.full_like(label, math.nan), label)


def summarise(table: dict[str, np.ndarray[Any, Any]]) -> dict[str, float]:
    """The metrics of an evaluation, under TRL's names where it has one."""
    if not table or not len(table["share"]):
        return {"loss": math.nan}
    if "tokens" in table:
        nll = float(table["loss"].sum() / table["tokens"].sum())
        return {"loss": nll, "nll/token": nll, "perplexity": math.exp(min(nll, 700.0))}
    kept = table["share"] > 0
    gap = table["chosen"] - table["rejected"]
    metrics = {"loss": float(table["weighted"].sum() / max(table["share"].sum(), 1e-12))}
    decided = ~np.isnan(table["label"])
    clear = decided & (table["label"] != 0.5)
    for name, column in (("rewards/chosen", "chosen"), ("rewards/rejected", "rejected")):
        metrics[name] = float(table[column][kept].mean()) if kept.any() else math.nan
    metrics["rewards/margins"] = float(gap[kept].mean()) if kept.any() else math.nan
    if clear.any():
        metrics["rewards/accuracies"] = float(
            ((gap > 0) == (table["label"] > 0.5))[clear & (gap != 0)].sum() / clear.sum()
        )
    for name, column in (("logps/chosen", "logp_chosen"), ("logps/rejected", "logp_rejected")):
        if column in table:
            metrics[name] = float(table[column][kept].mean()) if kept.any() else math.nan
    if decided.any():
        label, own = table["label"][decided], gap[decided]
        metrics["nll"] = float((np.logaddexp(0.0, -own) + (1.0 - label) * own).mean())
        prob = 1.0 / (1.0 + np.exp(-np.clip(own, -700, 700)))
        metrics["calibration/brier"] = float(((label - prob) ** 2).mean())
        metrics["calibration/ece"] = float(expected_calibration_error(prob, label))
    return metrics


def names_of(batch: Batch, column: str = "ids") -> list[Any]:
    """The group that each loss of a batch belongs to, by its id or its row."""
    if len(batch["pairs"]):
        return [batch[column][number] for number in batch["group_of"].tolist()]
    return [name for name, size in zip(batch[column], batch["sizes"], strict=True) for _ in range(size)]
