"""What a group costs: the irreducible floating-point operations, and the machine's measured peak to hold them against.

    forward(group) = 2 N (P + sum n_k) + 2 d V sum n_k + 4 A E,  E = P (P + 1) / 2 + sum_k (n_k P + n_k (n_k + 1) / 2)

N: weights of the body a token meets; d V: of the output layer; A: heads x head size, summed over layers; E: pairs of
positions that attend. An encoder reads each response together with its prompt, both ways: sum_k (P + n_k) tokens,
E = sum_k (P + n_k)^2. Backward: twice that, once where weights are frozen. Recomputing, padding and running a token
twice are not in it, so they show as loss: goodput = these operations / time / peak.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from marginkit.data.encoded import EncodedGroup, Shape
from marginkit.models.attention import windows_of
from marginkit.models.loading import core_of, is_reward_model
from marginkit.scoring import Precision


@dataclass(frozen=True, slots=True)
class Cost:
    """The coefficients of a model, in floating-point operations of forward and backward.

    Args:
        token: of each token of the body.
        predicted: of each response token in the output layer; 0 for a reward model.
        attended: of each pair of positions in all layers without a window.
        windowed: of each pair of positions in all layers with a window.
        window: positions such a layer looks back, itself included; in an encoder: each way, itself not included.
        encoder: each response is read together with its prompt, both ways.
    """

    token: float
    predicted: float
    attended: float
    windowed: float = 0.0
    window: int | None = None
    encoder: bool = False

    def group(self, shape: Shape) -> float:
        """Operations of a group: its prompt once, each response once; in an encoder the prompt with each response.

        Example:
            >>> Cost(token=2.0, predicted=3.0, attended=1.0).group(Shape(2, (1, 3)))
            42.0
        """
        attended = _attended_both_ways if self.encoder else _attended
        tokens = shape.packed + self.encoder * shape.prompt * (len(shape.responses) - 1)
        linear = self.token * tokens + self.predicted * sum(shape.responses)
        full = self.attended * attended(shape, None)
        return linear + full + (self.windowed * attended(shape, self.window) if self.windowed else 0.0)


def _attended(shape: Shape, window: int | None) -> float:
    """Pairs of positions that attend to each other."""

    def upto(length: int) -> float:  # sum of min(position, window) for positions 1 .. length
        near = length if window is None else min(length, window)
        return near * (near + 1) / 2 + (length - near) * near

    prompt = upto(shape.prompt)
    return prompt + sum(upto(shape.prompt + length) - prompt for length in shape.responses)


def _attended_both_ways(shape: Shape, window: int | None) -> float:
    """The same in an encoder, which reads each response with its prompt."""

    def near(length: int) -> float:  # of the pairs at a distance of up to `reach`
        reach = length - 1 if window is None else min(length - 1, window)
        return length * (1 + 2 * reach) - reach * (reach + 1)

    return sum(near(shape.prompt + length) for length in shape.responses)


def cost_of(model: Any, *, training: bool = True) -> Cost:
    """The coefficients of a model as it will be trained; with adapters, frozen weights cost two thirds.

    Args:
        model: a transformers or PEFT model.
        training: forward and backward; else forward alone.
    """
    core = core_of(model)
    config = core.config.get_text_config()
    reward_model = is_reward_model(core)
    looked_up = [module for module in core.modules() if isinstance(module, torch.nn.Embedding)]
    apart = {id(weight) for module in looked_up for weight in module.parameters()}
    body = 0.0
    for name, weight in core.base_model.named_parameters():  # without a reward head, which reads one token a response
        if weight.ndim > 1 and id(weight) not in apart and "bias" not in name:
            body += _used(name, config) * _size(weight) * _passes(weight.requires_grad, training)
    predicted = 0.0
    output = None if reward_model else core.get_output_embeddings()
    if output is not None:
        weights = [weight for weight in output.parameters() if weight.ndim > 1]
        predicted = sum(_size(weight) * _passes(weight.requires_grad, training) for weight in weights)
    layers, heads = config.num_hidden_layers, getattr(config, "num_attention_heads", 0)  # Mamba has none
    size = getattr(config, "head_dim", None) or config.hidden_size // max(heads, 1)
    each = 4.0 * heads * size * (3 if training else 1)
    kinds = getattr(config, "layer_types", None)
    windows = windows_of(config)
    if not kinds:
        kinds = ["full_attention"] * layers
    narrow = sum(windows.get(kind) is not None for kind in kinds)
    window = next((value for value in windows.values() if value is not None), None)
    encoder = reward_model and not hasattr(core, "score")
    return Cost(2 * body, 2 * predicted, each * (len(kinds) - narrow), each * narrow, window, encoder)


def _size(weight: torch.Tensor) -> int:
    """Numbers in a weight; one in 4 bits holds two in each of its own."""
    quantised = getattr(weight, "quant_state", None)
    return weight.numel() if quantised is None else math.prod(quantised.shape)


def _passes(trained: bool, training: bool) -> int:
    """Matrix multiplications of a weight: forward, the gradient of its input, its own gradient."""
    return (3 if trained else 2) if training else 1


def _used(name: str, config: Any) -> float:
    """The share of a weight that one token meets: less than 1 for experts."""
    if "experts" not in name or "shared" in name:
        return 1.0
    counts = (getattr(config, key, None) for key in ("num_local_experts", "num_experts", "n_routed_experts"))
    many = next((count for count in counts if count), None)
    return 1.0 if many is None else getattr(config, "num_experts_per_tok", many) / many


@cache
def measured_peak(precision: Precision) -> float:
    """Operations a second of a large matrix multiplication here and now, in the type of forward passes."""
    device = precision.device
    size = 1024 if device.type == "cpu" else 8192
    made = torch.Generator(device).manual_seed(0)  # not the global one, which training draws from
    left = torch.randn(size, size, device=device, generator=made).to(precision.autocast or torch.float32)
    best, end = 0.0, time.perf_counter() + 0.2
    while best == 0.0 or time.perf_counter() < end:
        began = time.perf_counter()
        float((left @ left)[0, 0])  # waits until it is there
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def pair_tokens(groups: Iterable[EncodedGroup], keep: Iterable[float]) -> int:
    """Tokens of a trainer that runs both members of every pair, prompt included, padded to the longer of the two.

    Its batches pad more, so it is the least that such a trainer computes.

    Args:
        groups: encoded groups.
        keep: of each of their pairs, whether it takes part (not 0).
    """
    total, kept = 0, iter(keep)
    for group in groups:
        lengths = group.shape.responses
        for chosen, rejected in zip(group.chosen, group.rejected, strict=True):
            if next(kept):
                total += 2 * (len(group.prompt_ids) + max(lengths[chosen], lengths[rejected]))
    return total
