"""Batches: groups of tokens as the rows of one forward pass.

packed: the prompt once, its responses one after the other, positions going on from the prompt's end in each; several
groups a row. padded: one row a response, the prompt in front of each. A batch says where things are (`predict_at`,
`read_at`), so what follows the forward pass never asks how rows are laid out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from marginkit.core.tensors import Labels
from marginkit.data.encoded import PAIR_NUMBERS, EncodedGroup
from marginkit.models.attention import FLEX_MULTIPLE, Piece, Segments

Batch = dict[str, Any]
"""Tensors by name, and `ids`, `sizes` (responses) of the groups: what a forward pass and a loss need.

input_ids [row, token]; rung: how attention is computed. Padded rows: attention_mask [row, token]. Packed ones:
position_ids [row, token], and `segments`, or group_ids and segment_ids [row, token], see `attention`.

predict_at [S] flat positions whose hidden state predicts a response token, predict [S] that token, owner [S] its
response; read_at [R] flat position of a response's last token; length [R]; ref_logp, rm_head [R] where they were
joined in; response_grade [R] dataset units; pairs [P, 2]; grade, utility [P, 2]; prob, target_gap, strength, weight
[P]; tie [P]; ids [group]; group_of [P]. NaN stands for absent in number columns.

wants: names out of `BY_PRODUCTS`, which the forward pass then computes beside its scores; absent for none.
"""

BY_PRODUCTS = ("log_collision", "entropy", "hidden")
"""Score fields that a forward pass gives only on request: a policy all of them, a reward model the last."""

Rung = Literal["flex", "segments", "dense", "rows"]
"""How attention is computed: packed rows in one of three ways, or padded rows."""


def make_batch(groups: Sequence[EncodedGroup], *, rung: Rung, pad_id: int, dtype: torch.dtype = torch.float64) -> Batch:
    """Lay groups out as a rung takes them; see `padded_batch`, `packed_batch`."""
    if rung == "rows":
        return padded_batch(groups, pad_id=pad_id, dtype=dtype)
    return packed_batch(groups, rung=rung, pad_id=pad_id, dtype=dtype)


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
        "read_at": torch.tensor([number * width + (_last(ids, pad_id) or 0) for number, ids in enumerate(rows)]),
        "length": length.to(dtype),
    }
    return batch | pair_columns(groups, dtype)


def packed_batch(
    groups: Sequence[EncodedGroup], *, rung: Rung, pad_id: int, dtype: torch.dtype = torch.float64
) -> Batch:
    """Lay groups out so that each prompt and each response is there once.

    One row for all groups and no padding; where a 4D mask is made (`dense`), whose cost grows with the square of the
    row, rows as long as the longest group; where blocks are (`flex`), the row is padded to a multiple of 128.

    Args:
        groups: encoded groups.
        rung: segments, flex or dense.
        pad_id: the padding token.
        dtype: of the number columns.

    Returns:
        A batch; responses and pairs are numbered through in the order of the groups.
    """
    sizes = [group.shape.packed for group in groups]
    rows = _bins(sizes, max(sizes)) if rung == "dense" else [list(range(len(groups)))]
    width = max(sum(sizes[number] for number in row) for row in rows)
    if rung == "flex":
        width = -(-width // FLEX_MULTIPLE) * FLEX_MULTIPLE
    flat = {name: [0] * (len(rows) * width) for name in ("position_ids", "segment_ids")}
    flat |= {"input_ids": [pad_id] * (len(rows) * width), "group_ids": [-1] * (len(rows) * width)}
    pieces: list[Piece] = []
    placed: dict[int, int] = {}
    for number, row in enumerate(rows):
        at = number * width
        for member in row:
            placed[member] = at
            at += sizes[member]
    predict_at: list[int] = []
    read_at: list[int] = []
    for number, group in enumerate(groups):
        origin, prompt = placed[number], len(group.prompt_ids)
        at = origin
        for segment, ids in enumerate((group.prompt_ids, *group.response_ids)):
            stop = at + len(ids)
            flat["input_ids"][at:stop] = ids
            first = 0 if segment == 0 else prompt
            flat["position_ids"][at:stop] = range(first, first + len(ids))
            flat["segment_ids"][at:stop] = [segment] * len(ids)
            if segment == 1:
                pieces.append(Piece(origin, stop, origin, 0))
            elif segment > 1:
                pieces.append(Piece(at, stop, origin, prompt))
            if segment:
                predict_at += [origin + prompt - 1, *range(at, stop - 1)]
                last = _last(ids, pad_id)
                read_at.append(at + last if last is not None else origin + (_last(group.prompt_ids, pad_id) or 0))
            at = stop
        flat["group_ids"][origin:at] = [number] * (at - origin)
    lengths = [len(ids) for group in groups for ids in group.response_ids]
    length = torch.tensor(lengths)
    grid = {name: torch.tensor(values).view(len(rows), width) for name, values in flat.items()}
    batch: Batch = {
        "ids": [group.id for group in groups],
        "sizes": [len(group.response_ids) for group in groups],
        "rung": rung,
        "input_ids": grid["input_ids"],
        "position_ids": grid["position_ids"],
        "predict_at": torch.tensor(predict_at),
        "predict": torch.tensor([token for group in groups for ids in group.response_ids for token in ids]),
        "owner": torch.repeat_interleave(torch.arange(len(lengths)), length),
        "read_at": torch.tensor(read_at),
        "length": length.to(dtype),
    }
    if rung == "segments":
        batch["segments"] = Segments(tuple(pieces))
    else:
        batch |= {name: grid[name] for name in ("group_ids", "segment_ids")}
    return batch | pair_columns(groups, dtype)


def _bins(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """First fit, largest first: the members of each row."""
    rows: list[list[int]] = []
    room: list[int] = []
    for member in sorted(range(len(sizes)), key=lambda number: (-sizes[number], number)):
        row = next((number for number, left in enumerate(room) if left >= sizes[member]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(capacity)
        rows[row].append(member)
        room[row] -= sizes[member]
    return rows


def _last(ids: Sequence[int], pad_id: int) -> int | None:
    """Where transformers reads a reward: the last token that is not padding (an end token, if padding is another)."""
    return next((at for at in range(len(ids) - 1, -1, -1) if ids[at] != pad_id), None)


def pair_columns(groups: Sequence[EncodedGroup], dtype: torch.dtype) -> Batch:
    """What the data says of the pairs and responses of groups, see `Batch`."""
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
        for name in PAIR_NUMBERS
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
