"""Log-probabilities of given tokens, in chunks: never the logits of a whole batch, fp32 or better sums."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_LOGITS_CPU = 2**25  # elements of one chunk of logits: 128 MB in fp32
_LOGITS_GPU = 2**28


def token_logprobs(
    head: Callable[[Tensor], Tensor], hidden: Tensor, tokens: Tensor, *, vocab: int, budget: int | None = None
) -> Tensor:
    """Log p(token) at each position: logit of the token minus logsumexp over the vocabulary, in fp32.

    Args:
        head: hidden states -> logits; called as a module, so that adapters, quantisation and sharding keep working.
        hidden: [S, d], only where a response token is predicted.
        tokens: [S] the tokens there.
        vocab: size of the vocabulary, which sets the chunk.
        budget: logits held at a time; default by device.

    Returns:
        [S] nats.
    """

    def chunk_logprobs(states: Tensor, wanted: Tensor) -> Tensor:
        return -nn.functional.cross_entropy(head(states).float(), wanted, reduction="none")

    if budget is None:
        budget = _LOGITS_CPU if hidden.device.type == "cpu" else _LOGITS_GPU
    size = max(1, budget // vocab)
    if len(tokens) <= size:
        return chunk_logprobs(hidden, tokens)
    parts = []
    for states, wanted in zip(hidden.split(size), tokens.split(size), strict=True):
        if torch.is_grad_enabled() and hidden.requires_grad:
            part = checkpoint(chunk_logprobs, states, wanted, use_reentrant=False)
            assert isinstance(part, Tensor)
            parts.append(part)
        else:
            parts.append(chunk_logprobs(states, wanted))
    return torch.cat(parts)


def sum_by_owner(values: Tensor, owner: Tensor, num_responses: int) -> Tensor:
    """Sum token values per response, in float64 where the device has it: at -3700 nats one fp32 step is 2e-4."""
    dtype = torch.float32 if values.device.type == "mps" else torch.float64
    return torch.zeros(num_responses, dtype=dtype, device=values.device).index_add(0, owner, values.to(dtype))
