"""Batches. Here the plain layout: one padded row a response, the prompt in front of each.

A batch says where things are (`predict_at`, `read_at`), so the scorer never asks how rows are laid out; a packed layout
fills the same fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from marginkit.core.tensors import Labels
from marginkit.data.encoded import EncodedGroup

Batch = dict[str, Any]
"""Tensors by name, and `ids`, `sizes` (responses) of the groups: what a forward pass and a loss need.

input_ids, attention_mask [row, token]; predict_at [S] flat positions whose hidden state predicts a response token,
predict [S] that token, owner [S] its response; read_at [R] flat position of a response's last token; length [R];
ref_logp, rm_head [R] where they were joined in; response_grade [R] dataset units; pairs [P, 2]; grade, utility [P, 2];
prob, target_gap, strength, weight [P]; tie [P]; ids [group]; group_of [P]. NaN stands for absent in number columns.

wants: names out of `BY_PRODUCTS`, which the forward pass then computes beside its scores; absent for none.
"""

BY_PRODUCTS = ("log_collision", "hidden")
"""Score fields that a forward pass gives only on request: the first of a policy, the second of a reward model."""

LABEL_COLUMNS = ("prob", "target_gap", "strength", "weight")


def padded_batch(groups: Sequence[EncodedGroup], *, pad_id: int, dtype: torch.dtype = torch.float64) -> Batch:
    """Lay groups out as padded rows, each response once, padding on the right.

    Args:
        groups: encoded groups.
        pad_id: the padding token.
        dtype: of the number columns; float64 keeps sums of log-probabilities exact.

    Returns:
        A batch; responses and pairs are numbered through in the order of the groups.
    """
    rows: list[list[int]] = []
    starts: list[int] = []
    for group in groups:
        for response in group.response_ids:
            rows.append(group.prompt_ids + response)
            starts.append(len(group.prompt_ids))
    width = max(map(len, rows))
    input_ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    attention_mask = torch.zeros((len(rows), width), dtype=torch.long)
    predict_at: list[Tensor] = []
    predict: list[Tensor] = []
    for number, (ids, start) in enumerate(zip(rows, starts, strict=True)):
        row = torch.tensor(ids, dtype=torch.long)
        input_ids[number, : len(ids)] = row
        attention_mask[number, : len(ids)] = 1
        predict_at.append(number * width + torch.arange(start - 1, len(ids) - 1))
        predict.append(row[start:])
    length = torch.tensor([len(ids) - start for ids, start in zip(rows, starts, strict=True)])
    batch: Batch = {
        "ids": [group.id for group in groups],
        "sizes": [len(group.response_ids) for group in groups],
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "predict_at": torch.cat(predict_at),
        "predict": torch.cat(predict),
        "owner": torch.repeat_interleave(torch.arange(len(rows)), length),
        "read_at": torch.tensor([number * width + _last(ids, pad_id) for number, ids in enumerate(rows)]),
        "length": length.to(dtype),
    }
    return batch | _pair_columns(groups, dtype)


def _last(ids: Sequence[int], pad_id: int) -> int:
    """Where transformers reads a reward: the last token that is not padding (an end token, if padding is another)."""
    return next((at for at in range(len(ids) - 1, 0, -1) if ids[at] != pad_id), 0)


def _pair_columns(groups: Sequence[EncodedGroup], dtype: torch.dtype) -> Batch:
    pairs: list[tuple[int, int]] = []
    group_of: list[int] = []
    first = 0
    for number, group in enumerate(groups):
        pairs += [(first + c, first + r) for c, r in zip(group.chosen, group.rejected, strict=True)]
        group_of += [number] * len(group.chosen)
        first += len(group.response_ids)
    index = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
    columns: Batch = {
        name: torch.tensor([value for group in groups for value in getattr(group, name)], dtype=dtype)
        for name in LABEL_COLUMNS
    }
    for name in ("grade", "utility"):
        values = torch.tensor([value for group in groups for value in getattr(group, name)], dtype=dtype)
        columns[name] = values[index]
        if name == "grade":
            columns["response_grade"] = values
    columns["tie"] = torch.tensor([tie for group in groups for tie in group.tie], dtype=torch.bool)
    columns["pairs"] = index
    columns["group_of"] = torch.tensor(group_of, dtype=torch.long)
    for name in ("ref_logp", "rm_head"):
        joined = [getattr(group, name) for group in groups]
        if all(values is not None for values in joined):
            columns[name] = torch.tensor([value for values in joined for value in values], dtype=dtype)
    return columns


def labels_of(batch: Batch) -> Labels:
    """The label columns of a batch."""
    return Labels(
        grade=batch["grade"],
        utility=batch["utility"],
        prob=batch["prob"],
        target_gap=batch["target_gap"],
        strength=batch["strength"],
        weight=batch["weight"],
        tie=batch["tie"],
    )


def number_dtype(device: torch.device | str) -> torch.dtype:
    """float64 where the device has it, else float32."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64
