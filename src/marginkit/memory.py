"""What training will hold in memory, measured on one group of its own data before it begins."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from marginkit.batching import BatchPlan, MicroBatch
from marginkit.config import TrainConfig
from marginkit.data.encoded import EncodedGroup, EncodedGroups
from marginkit.models.loading import core_of, is_reward_model
from marginkit.models.logprobs import cache_bytes
from marginkit.models.packing import Rung, make_batch, number_dtype
from marginkit.models.scorer import score
from marginkit.scoring import Precision, to_device

log = logging.getLogger("marginkit")

_ROOM = 0.8  # of what is free: allocators do not fill it, and a backward pass needs room of its own
_SAMPLE = 256  # tokens of a measured pass, at least
_STEPS = 64  # optimizer steps that are looked through for the largest pass
_STATES = {"sgd": 0, "adafactor": 0, "lion_32bit": 1, "rmsprop": 1, "adagrad": 1}  # numbers a weight; else Adam's 2


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that one rank needs, and has.

    Args:
        weights: of the model, already held.
        gradients: of what is trained.
        optimizer: its state.
        activations: of the largest forward pass, kept for its backward.
        free: on the device, beside the weights.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    free: int

    @property
    def needed(self) -> int:
        """What is still to be allocated."""
        return self.gradients + self.optimizer + self.activations

    @property
    def fits(self) -> bool:
        """Whether it is there, with room to spare."""
        return self.needed <= _ROOM * self.free


def estimate(
    model: nn.Module, groups: EncodedGroups, plan: BatchPlan, config: TrainConfig, precision: Precision, rung: Rung,
    *, pad_id: int, shards: int = 1,
) -> Memory:  # fmt: skip
    """Measure the activations of two small passes, and scale them to the largest pass of the first steps.

    Args:
        model: to be trained, where it will run.
        groups: training data.
        plan: of its batches.
        config: training settings.
        precision: how forward passes are computed.
        rung: how rows are laid out and attention is computed.
        pad_id: padding token.
        shards: ranks that share weights, gradients and optimizer state.
    """
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    gradients = sum(weight.numel() * weight.element_size() for weight in trained)
    states = 0.5 if "8bit" in config.optim else _STATES.get(config.optim, 2)  # 8-bit Adam: two bytes of four
    largest = max(_first_steps(plan), key=lambda micro: _pass_tokens(plan, micro))
    members: list[EncodedGroup] = [groups[index] for index in largest.groups]
    if largest.passes > 1:
        parts = plan.parts(largest.groups[0])
        members = [members[0].part(max(parts, key=lambda part: plan.shapes[largest.groups[0]].part(part).packed))]
    few, many = _samples(members)
    one, two = (_held(model, part, precision, rung, pad_id) for part in (few, many))
    head = _head_bytes(model)
    # from two sizes: what is kept a token, and what is kept once (copies of weights that autocast makes)
    slope = (two.body(head) - one.body(head)) / (two.tokens - one.tokens) if two.tokens > one.tokens else 0.0
    fixed = max(0.0, one.body(head) - slope * one.tokens) if slope else 0.0
    slope = slope or one.body(head) / one.tokens
    read = sum(sum(group.shape.responses) for group in members)
    return Memory(
        weights=weights // shards,
        gradients=gradients // shards,
        optimizer=int(states * gradients) // shards,
        activations=int(fixed + slope * _pass_tokens(plan, largest) + head(read)),
        free=free_bytes(precision.device),
    )


@dataclass(frozen=True, slots=True)
class _Held:
    """Tokens of a pass, response tokens among them, and the bytes it keeps."""

    tokens: int
    read: int
    bytes: int

    def body(self, head: Callable[[int], int]) -> int:
        """Bytes but for those of the output layer, which has a bound of its own."""
        return max(0, self.bytes - head(self.read))


def _held(model: nn.Module, groups: Sequence[EncodedGroup], precision: Precision, rung: Rung, pad_id: int) -> _Held:
    batch = make_batch(groups, rung=rung, pad_id=pad_id, dtype=number_dtype(precision.device))
    return _Held(batch["input_ids"].numel(), len(batch["predict"]), saved_bytes(model, batch, precision))


def _head_bytes(model: Any) -> Callable[[int], int]:
    """What the output layer keeps of so many response tokens: its errors, up to its cache."""
    core = core_of(model)
    output = None if is_reward_model(core) else core.get_output_embeddings()
    if output is None or not any(weight.requires_grad for weight in output.parameters()):
        return lambda _: 0
    each = 4 * core.config.get_text_config().vocab_size
    return lambda read: min(read * each, cache_bytes(core.device.type))


def _samples(groups: Sequence[EncodedGroup]) -> tuple[list[EncodedGroup], list[EncodedGroup]]:
    """A small and a larger part of a micro-batch, neither larger than the whole where that is large."""
    if len(groups) == 1:
        (group,) = groups
        if group.shape.packed < _SAMPLE:
            return [group], [group] * (1 + -(-_SAMPLE // group.shape.packed))
        return [group.part([0])], [group]
    few: list[EncodedGroup] = []
    for group in groups:
        few.append(group)
        if sum(one.shape.packed for one in few) >= _SAMPLE:
            break
    more = list(groups[: 2 * len(few)])
    return few, more if len(more) > len(few) else [*few, *few]


def _first_steps(plan: BatchPlan) -> Iterator[MicroBatch]:
    """Micro-batches of the first steps of training, on all ranks."""
    for step in islice(plan.steps(epoch=0), _STEPS):
        for own in step:
            yield from own


def _pass_tokens(plan: BatchPlan, micro: MicroBatch) -> int:
    """Tokens of the largest pass of a micro-batch."""
    if micro.passes > 1 and len(micro.groups) == 1:
        (index,) = micro.groups
        parts = [plan.shapes[index].part(part) for part in plan.parts(index)]
        return max(part.packed if plan.packed else part.padded for part in parts)
    return plan.tokens(micro)


def saved_bytes(model: nn.Module, batch: dict[str, Any], precision: Precision) -> int:
    """Bytes that a forward pass keeps for its backward, weights apart, each storage once."""
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    held: dict[int, int] = {}
    kept: list[Tensor] = []  # alive until the end: an address that is freed would be used again

    def note(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
            kept.append(value)
        return value

    devices = [precision.device] if precision.device.type == "cuda" else []
    training = model.training
    model.train()
    try:
        with torch.random.fork_rng(devices), precision.context():
            with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
                scores = score(core_of(model), to_device(batch, precision.device))
            del scores
    finally:
        model.train(training)
    return sum(held.values())


def free_bytes(device: torch.device) -> int:
    """Bytes free on the device; of a CPU, this process's share of the machine."""
    if device.type == "cuda":
        unused = torch.cuda.mem_get_info(device)[0]
        return int(unused) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free: int = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # a container's own limit, where there is one
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        kept = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, limit - used + int(kept.get("inactive_file", 0)))  # a file just read gives way
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def wants_checkpointing(model: Any, memory: Memory, wanted: bool | str) -> bool:
    """Whether activations are to be computed again in the backward pass: as asked; auto: if they do not fit."""
    if wanted != "auto":
        return bool(wanted)
    if memory.fits:
        return False
    able = bool(getattr(core_of(model), "supports_gradient_checkpointing", False))
    log.warning(
        "memory: about %s is needed (%s of it activations), %s is free; %s",
        in_words(memory.needed),
        in_words(memory.activations),
        in_words(memory.free),
        "activation checkpointing is turned on; a smaller train.tokens_per_micro_batch would do as well"
        if able
        else "the model cannot checkpoint activations: lower train.tokens_per_micro_batch",
    )
    return able


def in_words(count: float) -> str:
    """Bytes as people say them.

    Example:
        >>> in_words(1_530_000_000), in_words(20_000_000)
        ('1.5 GB', '20 MB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"
