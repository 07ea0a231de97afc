"""Log-probabilities of given tokens, in chunks: never the logits of a whole batch, fp32 or better sums."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint

from marginkit.models.head import LogitTransform, TokenScores, by_products, linear_logprobs, precise

_ROWS_CPU, _ROWS_GPU = 256, 2048  # positions of a chunk: enough to keep the matrix product at its full speed,
_LOGITS_CPU, _LOGITS_GPU = 2**25, 2**28  # while its logits stay below 128 MB or 1 GB in fp32
_CACHE_CPU, _CACHE_GPU = 2**28, 2**30  # bytes
_UNKNOWN_VOCAB = 2**18  # of a head that does not say: large
_AS_IS = LogitTransform()
_HOOKS = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")


def token_logprobs(
    head: nn.Module,
    hidden: Tensor,
    tokens: Tensor,
    *,
    transform: LogitTransform = _AS_IS,
    wants: Collection[str] = (),
    chunk: int | None = None,
    cache: int | None = None,
) -> TokenScores:
    """Log p(token) = z[token] - logsumexp(z) at each position, z = transform(head(hidden)), and what else is wanted.

    One pass of the head serves all scores. A plain linear layer has a gradient of our own (`models.head`); any other
    module (an adapter, quantised, hooked, sharded) is called as a module, its chunks checkpointed.

    Args:
        head: hidden states -> logits of the vocabulary.
        hidden: [S, d], only where a response token is predicted.
        tokens: [S] the tokens there.
        transform: what the model does to logits after the head.
        wants: names out of `log_collision`, `entropy`.
        chunk: positions at a time; default by device and vocabulary.
        cache: bytes that may be kept for the backward, which computes again what does not fit; default by device.

    Returns:
        [S] nats each; log p alone has a gradient.

    Example:
        >>> head = nn.Linear(2, 4)
        >>> _ = nn.init.zeros_(head.weight), nn.init.zeros_(head.bias)
        >>> token_logprobs(head, torch.ones(3, 2), torch.tensor([0, 1, 3]), wants=("entropy",)).entropy
        tensor([1.3863, 1.3863, 1.3863])
    """
    vocab: int = getattr(head, "out_features", _UNKNOWN_VOCAB)
    on_cpu = hidden.device.type == "cpu"
    if chunk is None:
        chunk = max(1, min(_ROWS_CPU if on_cpu else _ROWS_GPU, (_LOGITS_CPU if on_cpu else _LOGITS_GPU) // vocab))
    if cache is None:
        cache = cache_bytes(hidden.device.type)
    autocast = torch.is_autocast_enabled(hidden.device.type) and hidden.dtype != torch.float64
    if _is_plain(head) and (autocast or head.weight.dtype == hidden.dtype):
        if autocast:
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
        return linear_logprobs(
            hidden, head.weight, head.bias, tokens, transform=transform, wants=wants, chunk=chunk, cache=cache
        )
    return _module_logprobs(
        head, hidden, tokens, transform=transform, wants=wants, chunk=chunk, at_once=cache // (4 * vocab)
    )


def cache_bytes(device: str) -> int:
    """Bytes that the head may keep for its backward on a kind of device."""
    return _CACHE_CPU if device == "cpu" else _CACHE_GPU


def _is_plain(head: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether calling the module is nothing but h W' + b on ordinary tensors."""
    return (
        type(head) is nn.Linear
        and "forward" not in vars(head)  # where accelerate puts its hooks
        and not any(getattr(head, f"_{hooks}") for hooks in _HOOKS)
        and all(
            own is None or (type(own) in (Tensor, nn.Parameter) and own.is_floating_point())
            for own in (head.weight, head.bias)
        )
    )


def _module_logprobs(
    head: nn.Module,
    hidden: Tensor,
    tokens: Tensor,
    *,
    transform: LogitTransform,
    wants: Collection[str],
    chunk: int,
    at_once: int,
) -> TokenScores:
    def every(forward: Callable[[Tensor], Tensor], hidden: Tensor) -> TokenScores:
        def read(states: Tensor, wanted: Tensor) -> TokenScores:
            log_p = transform(precise(forward(states))).log_softmax(-1)
            logp = log_p.gather(-1, wanted[:, None])[:, 0]
            # last, and with nothing saved for the backward: a checkpointed chunk stops recomputing before it
            return TokenScores(logp, **(by_products(log_p.detach().exp(), wants) if wants else {}))

        left = at_once
        parts: list[TokenScores] = []
        for states, wanted in zip(hidden.split(chunk), tokens.split(chunk), strict=True):
            left -= len(wanted)
            if torch.is_grad_enabled() and left < 0:
                parts.append(cast(TokenScores, checkpoint(read, states, wanted, use_reentrant=False)))
            else:
                parts.append(read(states, wanted))
        return TokenScores.joined(parts)

    return _in_one_call(head, every, hidden) if _is_sharded(head) else every(head, hidden)


def _is_sharded(head: nn.Module) -> bool:
    """Whether ranks hold parts of the head, which its every call brings together (FSDP2, ZeRO-3)."""
    return isinstance(head, FSDPModule) or any(hasattr(weight, "ds_id") for weight in head.parameters())


def _in_one_call(
    module: Any, work: Callable[[Callable[[Tensor], Tensor], Tensor], TokenScores], states: Tensor
) -> TokenScores:
    """`work(the module's own forward, states)` as one forward of the module, however often it takes that forward.

    A call of a sharded module is a communication, and ranks have as many chunks as tokens.
    """
    own, plain = vars(module).get("forward"), module.forward
    module.forward = lambda states: work(plain, states)
    try:
        return cast(TokenScores, module(states))
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def sum_by_owner(values: Tensor, owner: Tensor, num_responses: int) -> Tensor:
    """Sum token values per response, in float64 where the device has it: at -3700 nats one fp32 step is 2e-4."""
    dtype = torch.float32 if values.device.type == "mps" else torch.float64
    return torch.zeros(num_responses, dtype=dtype, device=values.device).index_add(0, owner, values.to(dtype))
