"""What training will hold in memory, measured on one group of its own data before it begins."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from marginkit.batching import BatchPlan
from marginkit.config import TrainConfig
from marginkit.data.encoded import EncodedGroup, EncodedGroups
from marginkit.models.loading import core_of
from marginkit.models.packing import Rung, make_batch, number_dtype
from marginkit.models.scorer import score
from marginkit.scoring import Precision, to_device

log = logging.getLogger("marginkit")

_ROOM = 0.9  # of what is free: allocators do not fill it
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
    """Measure the activations of one group, and scale them to the largest pass of the plan.

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
    size = {index: shape.packed if plan.packed else shape.padded for index, shape in enumerate(plan.shapes)}
    typical = sorted(size, key=lambda index: size[index])[len(size) // 2]
    group: EncodedGroup = groups[typical].part(plan.parts(typical)[0])
    batch = make_batch([group], rung=rung, pad_id=pad_id, dtype=number_dtype(precision.device))
    a_token = saved_bytes(model, batch, precision) / batch["input_ids"].numel()
    most = max(min(plan.tokens_per_micro_batch, sum(size.values())), max(_largest_pass(plan, size)))
    return Memory(
        weights=weights // shards,
        gradients=gradients // shards,
        optimizer=int(states * gradients) // shards,
        activations=int(a_token * most),
        free=free_bytes(precision.device),
    )


def _largest_pass(plan: BatchPlan, size: dict[int, int]) -> Sequence[int]:
    """Tokens of passes that are over the budget: a response that cannot be cut; at least [0]."""
    over = [index for index, tokens in size.items() if tokens > plan.tokens_per_micro_batch]
    shapes = [plan.shapes[index].part(part) for index in over for part in plan.parts(index)]
    return [0, *(shape.packed if plan.packed else shape.padded for shape in shapes)]


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
        free = min(free, limit - used)
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
        >>> in_words(1_530_000_000), in_words(20_000)
        ('1.5 GB', '0.0 GB')
    """
    return f"{count / 1e9:.1f} GB"
