"""The metrics of training and evaluation steps, under TRL's names where it has one, so that dashboards keep working."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from marginkit.core.loss import Loss, PairLoss
from marginkit.core.tensors import SequenceScores
from marginkit.evaluation.calibration import expected_calibration_error
from marginkit.models.packing import Batch, number_dtype


class Meter:
    """Sums and counts by name, on the device; reduced once a log."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor, count: float | Tensor | None = None) -> None:
        """Add values; `count` says how many they stand for."""
        number = number_dtype(values.device)
        size = float(values.numel()) if count is None else count
        counted = torch.as_tensor(size, dtype=number, device=values.device)
        both = torch.stack([values.detach().to(number).sum(), counted])
        self.sums[name] = self.sums[name] + both if name in self.sums else both

    def reduce(self, accelerator: Any, names: Sequence[str]) -> dict[str, float]:
        """The means since the last call, over all ranks."""
        empty = torch.zeros(2, dtype=torch.float64)
        table = torch.stack([self.sums.get(name, empty).cpu().double() for name in names])
        table = accelerator.reduce(table.to(accelerator.device, torch.float32), "sum").cpu().double()
        self.sums = {}
        means = {name: float(total / count) for name, (total, count) in zip(names, table, strict=True) if count > 0}
        if SPREAD in means:  # summed as squares, which add up over ranks
            means[SPREAD] = math.sqrt(max(means[SPREAD] - means["rewards/margins"] ** 2, 0.0))
        return means


SPREAD = "rewards/margins_std"
PAIR_METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    SPREAD,
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "target/gap",
    "slack/violation_rate",
)
TARGET_METRICS = ("target/margin", "target/weight", "target/scale", "target/kept")
SFT_METRICS = ("nll/token",)


def metrics_of(recipe: Loss) -> tuple[str, ...]:
    """The names that `measure` adds for a recipe."""
    if recipe.target is None:
        return SFT_METRICS
    return (*PAIR_METRICS, *TARGET_METRICS, *(("nll/chosen_token",) if recipe.sft_weight else ()))


def _pair_rewards(result: PairLoss, batch: Batch) -> tuple[Tensor, Tensor]:
    """[P, 2] rewards and [P] which pairs can count, for losses per pair and per response alike."""
    value = result.rewards.value.detach()
    return (value, batch["share"] > 0) if value.ndim == 2 else (value[batch["pairs"]], ~batch["tie"])


def measure(meter: Meter, recipe: Loss, result: PairLoss, scores: SequenceScores, batch: Batch) -> None:
    """Add what a training micro-batch shows of its kept pairs."""
    add = meter.add
    if result.target is None:
        add("nll/token", result.loss, count=float(batch["length"].sum()))
        return
    value, keep = _pair_rewards(result, batch)
    if recipe.per == "pair":
        add("target/kept", result.target.keep[keep])
        keep = keep & result.target.keep  # a method may draw from those that can count
    gap = (value[:, 0] - value[:, 1])[keep]
    add("rewards/chosen", value[keep, 0])
    add("rewards/rejected", value[keep, 1])
    add("rewards/margins", gap)
    add(SPREAD, gap**2)
    add("rewards/accuracies", gap > 0)
    if scores.logp is not None:
        add("logps/chosen", scores.logp[batch["pairs"][:, 0]][keep])
        add("logps/rejected", scores.logp[batch["pairs"][:, 1]][keep])
        if recipe.sft_weight:
            mean = (scores.logp / batch["length"].clamp(min=1.0))[batch["pairs"][:, 0]]
            add("nll/chosen_token", -mean[keep])
    if recipe.per == "response":
        return
    target = result.target
    wanted = recipe.wanted(target)[keep]
    add("target/gap", wanted[torch.isfinite(wanted)])
    add("slack/violation_rate", target.scale[keep] * gap - target.margin[keep] < 0)
    made = set() if recipe.target is None else recipe.target.part.makes
    for name in sorted(made & {"margin", "weight", "scale"}):
        add(f"target/{name}", getattr(target, name)[keep])


def rows_of(
    recipe: Loss,
    result: PairLoss,
    weighted: Tensor,
    scores: SequenceScores,
    batch: Batch,
) -> dict[int, dict[str, list[float]]]:
    """Values of every pair and response, by the group's row: an id need not be unique."""
    per_response: dict[str, Tensor] = {}
    per_pair: dict[str, Tensor] = {}
    shares = per_response if recipe.per == "response" else per_pair
    shares |= {"share": batch["share"], "weighted": weighted}
    if result.target is None:
        per_response |= {"tokens": torch.bincount(batch["owner"]), "loss": result.loss}
    else:
        value, keep = _pair_rewards(result, batch)
        per_pair |= {"chosen": value[:, 0], "rejected": value[:, 1], "label": _labels(batch), "kept": keep}
        if scores.logp is not None:
            both = scores.logp[batch["pairs"]]
            per_pair |= {"logp_chosen": both[:, 0], "logp_rejected": both[:, 1]}
        if "apart" in batch:
            per_pair["apart"] = batch["apart"]
    rows: dict[int, dict[str, list[float]]] = {
        number: {name: [] for name in (*per_response, *per_pair)} for number in batch["rows"]
    }
    for columns, per in ((per_response, "response"), (per_pair, "pair")):
        lists = {name: value.cpu().double().tolist() for name, value in columns.items()}
        for position, group in enumerate(names_of(batch, per, "rows") if lists else ()):
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
    kept = table["kept"] > 0
    gap = table["chosen"] - table["rejected"]
    metrics = {"loss": float(table["weighted"].sum() / max(table["share"].sum(), 1e-12))}
    decided = ~np.isnan(table["label"])
    clear = decided & (table["label"] != 0.5)
    for name, column in (("rewards/chosen", "chosen"), ("rewards/rejected", "rejected")):
        metrics[name] = float(table[column][kept].mean()) if kept.any() else math.nan
    metrics["rewards/margins"] = float(gap[kept].mean()) if kept.any() else math.nan
    metrics[SPREAD] = float(gap[kept].std()) if kept.any() else math.nan
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


def names_of(batch: Batch, per: str, column: str = "ids") -> list[Any]:
    """The group that each pair (or response) of a batch belongs to, by its id or its row."""
    if per == "pair":
        return [batch[column][number] for number in batch["group_of"].tolist()]
    return [name for name, size in zip(batch[column], batch["sizes"], strict=True) for _ in range(size)]
