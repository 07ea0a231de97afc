"""One micro-batch in several forward passes, for a group that is larger than the token budget; exact for any loss.

The loss needs the scores of all responses at once, but its gradient reaches the weights through one number a response:
first all passes without gradients, then the loss and its slope at each score, then each pass again, with
`sum(slope * score)` as its loss. Memory is that of one pass, the price one more forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from marginkit.batching import BatchPlan, MicroBatch
from marginkit.core.tensors import SequenceScores
from marginkit.data.encoded import EncodedGroup
from marginkit.models.packing import Batch, Rung, make_batch

_TRAINED = ("logp", "head")


def batch_of(
    plan: BatchPlan,
    micro: MicroBatch,
    groups: Sequence[EncodedGroup],
    *,
    rung: Rung,
    pad_id: int,
    dtype: torch.dtype,
    wants: tuple[str, ...] = (),
) -> Batch:
    """The batch of a micro-batch. Where it takes several passes, `passes` holds a batch of each, and the whole keeps
    only what the loss needs; a rank whose own work takes fewer passes than another's adds some that count nothing.
    """

    def made(members: Sequence[EncodedGroup], real: bool = True) -> Batch:
        return make_batch(members, rung=rung, pad_id=pad_id, dtype=dtype) | {"wants": wants, "real": real}

    batch = made(groups, micro.real)
    if micro.passes == 1:
        return batch
    parts = plan.parts(micro.groups[0]) if len(groups) == 1 else []
    passes = [made([groups[0].part(members)]) for members in parts] if len(parts) > 1 else [batch | {"real": True}]
    passes += [made([groups[0].part([0])], real=False) for _ in range(micro.passes - len(passes))]
    return {name: value for name, value in batch.items() if name not in _FORWARD} | {"passes": passes}


_FORWARD = {"input_ids", "position_ids", "attention_mask", "segments", "group_ids", "segment_ids"}
_FORWARD |= {"predict_at", "predict", "read_at"}


def computed_tokens(batch: Batch) -> int:
    """Tokens that the forward passes of a batch compute, padding and repeated prompts included."""
    return sum(one["input_ids"].numel() for one in batch.get("passes", (batch,)))


def scores_of(model: Callable[..., SequenceScores], batch: Batch) -> SequenceScores:
    """Scores of a batch, in one call of `model(batch=...)` or several."""
    if "passes" not in batch:
        return model(batch=batch)
    found = [(one, model(batch=one)) for one in batch["passes"]]
    return _joined([scores for one, scores in found if one["real"]], batch)


def _joined(parts: Sequence[SequenceScores], batch: Batch) -> SequenceScores:
    """The scores of all responses; what the data says of them comes from the whole batch."""
    made = {
        field.name: torch.cat([getattr(part, field.name) for part in parts])
        for field in fields(SequenceScores)
        if all(getattr(part, field.name) is not None for part in parts)
    }
    given = {"ref_logp": batch.get("ref_logp"), "rm_head": batch.get("rm_head"), "grade": batch.get("response_grade")}
    return SequenceScores(**made | given)


def slopes_at(scores: SequenceScores, loss_of: Callable[[SequenceScores], Tensor]) -> tuple[Tensor, Tensor]:
    """The loss at given scores, and its derivative by each of them: [R]."""
    name = next(name for name in _TRAINED if getattr(scores, name) is not None)
    at = getattr(scores, name).detach().requires_grad_()
    others = {field.name: getattr(scores, field.name) for field in fields(SequenceScores) if field.name != name}
    with torch.enable_grad():
        loss = loss_of(SequenceScores(**others | {name: at}))
        (slope,) = torch.autograd.grad(loss, at, allow_unused=True) if loss.requires_grad else (None,)
    return loss.detach(), torch.zeros_like(at) if slope is None else slope


def weighted_sum(scores: SequenceScores, slope: Tensor) -> Tensor:
    """sum(slope * score): a loss whose gradient is that of the whole."""
    score = scores.logp if scores.logp is not None else scores.head
    assert score is not None
    return (slope * score).sum()


def slope_of_each(batch: Batch, slope: Tensor) -> Iterator[Tensor]:
    """The part of the slope that belongs to each pass; zeros for a filler."""
    first = 0
    for one in batch["passes"]:
        count = len(one["length"])
        yield slope[first : first + count] if one["real"] else torch.zeros_like(one["length"])
        first += count * one["real"]


class Dice:
    """Lets a second pass draw what the first drew, so that dropout is the same in both."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.states: list[tuple[Tensor, Any]] = []
        self._own: Any = getattr(torch, device.type, None)  # torch.cuda, torch.xpu, torch.mps
        self._which = () if device.type == "mps" else (device,)  # of mps there is one

    def note(self) -> None:
        """Note where the generators are, before a first pass."""
        own = None if self.device.type == "cpu" else self._own.get_rng_state(*self._which)
        self.states.append((torch.get_rng_state(), own))

    @contextmanager
    def again(self, number: int) -> Iterator[None]:
        """Draw as in the first pass of that number; afterwards as if nothing had been drawn."""
        before = len(self.states)
        self.note()
        self._set(number)
        try:
            yield
        finally:
            self._set(before)
            del self.states[before:]

    def _set(self, number: int) -> None:
        common, own = self.states[number]
        torch.set_rng_state(common)
        if own is not None:
            self._own.set_rng_state(own, *self._which)
