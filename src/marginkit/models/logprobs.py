"""Log-probabilities of given tokens, in chunks: never the logits of a whole batch, fp32 or better sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_LOGITS_CPU = 2**25  # elements of one chunk of logits: 128 MB in fp32
_LOGITS_GPU = 2**28


def token_logprobs(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    tokens: Tensor,
    *,
    vocab: int,
    collision: bool = False,
    budget: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log p(token) at each position, and on request the log-probability that two draws there agree; both in fp32.

    One pass of the head serves both: log p(token) is the token's logit minus logsumexp over the vocabulary, and
    log sum_v p(v)^2 = logsumexp(2 * logits) - 2 * logsumexp(logits) needs all of the same log-probabilities.

    Args:
        head: hidden states -> logits; called as a module, so that adapters, quantisation and sharding keep working.
        hidden: [S, d], only where a response token is predicted.
        tokens: [S] the tokens there.
        vocab: size of the vocabulary, which sets the chunk.
        collision: compute log sum_v p(v)^2 as well.
        budget: logits held at a time; default by device.

    Returns:
        [S] nats, log p(token); [S] nats, log sum_v p(v)^2 without a gradient, or None.
    """

    def chunk_logprobs(states: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor | None]:
        all_logp = head(states).float().log_softmax(-1)
        logp = -nn.functional.nll_loss(all_logp, wanted, reduction="none")
        # last, and with nothing saved for the backward: a checkpointed chunk stops recomputing before it
        return logp, (2 * all_logp.detach()).exp_().sum(-1).log() if collision else None

    if budget is None:
        budget = _LOGITS_CPU if hidden.device.type == "cpu" else _LOGITS_GPU
    size = max(1, budget // vocab)
    if len(tokens) <= size:
        return chunk_logprobs(hidden, tokens)
    parts: list[tuple[Tensor, Tensor | None]] = []
    for states, wanted in zip(hidden.split(size), tokens.split(size), strict=True):
        if torch.is_grad_enabled() and hidden.requires_grad:
            parts.append(cast(Any, checkpoint(chunk_logprobs, states, wanted, use_reentrant=False)))
        else:
            parts.append(chunk_logprobs(states, wanted))
    log_collision = torch.cat([agree for _, agree in parts if agree is not None]) if collision else None
    return torch.cat([logp for logp, _ in parts]), log_collision


def sum_by_owner(values: Tensor, owner: Tensor, num_responses: int) -> Tensor:
    """Sum token values per response, in float64 where the device has it: at -3700 nats one fp32 step is 2e-4."""
    dtype = torch.float32 if values.device.type == "mps" else torch.float64
    return torch.zeros(num_responses, dtype=dtype, device=values.device).index_add(0, owner, values.to(dtype))
