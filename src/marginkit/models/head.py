"""A plain linear output layer, from hidden states to log-probabilities of tokens, and back by a gradient of our own.

For z = transform(W h + b) the gradient of -log p(y) by the logits is (p - 1[y]) * transform': one tensor, the *error*,
which chunks of tokens make from their logits in place. What becomes of it sets the price, in products of [S, d] with
[d, V] over forward and backward: kept for the backward (3), made anew there (4), or, where the layer is frozen,
multiplied by W at once, after which [S, d] is all that need be kept (2).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """What some families do to logits after the output layer: softcap * tanh(scale * logits / softcap).

    Args:
        scale: multiplies the logits.
        softcap: bounds them; None: no bound, and the transform is the scale alone.

    Example:
        >>> LogitTransform(scale=2.0, softcap=3.0)(torch.tensor([0.0, 100.0]))
        tensor([0., 3.])
    """

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """The logits that the model's softmax sees."""
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def back_(self, grad: Tensor, transformed: Tensor) -> Tensor:
        """From a gradient by the transformed logits to that by the logits, in place."""
        if self.softcap is not None:
            grad.mul_(1 - (transformed / self.softcap).square_())
        return grad if self.scale == 1.0 else grad.mul_(self.scale)


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What a policy says at each of S positions; float32, or float64 if the model is.

    Args:
        logp: [S] nats, log p(token).
        log_collision: [S] nats, log sum_v p(v)^2: the log-probability that two draws agree; without a gradient.
        entropy: [S] nats, -sum_v p(v) log p(v); without a gradient.
    """

    logp: Tensor
    log_collision: Tensor | None = None
    entropy: Tensor | None = None

    @classmethod
    def joined(cls, parts: Collection[TokenScores]) -> TokenScores:
        """Chunk after chunk."""

        def column(name: str) -> Tensor | None:
            values = [getattr(part, name) for part in parts]
            return None if values[0] is None else torch.cat(values)

        return cls(cast(Tensor, column("logp")), column("log_collision"), column("entropy"))


def precise(logits: Tensor) -> Tensor:
    """In float32 at least: half precision is for products alone."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def by_products(p: Tensor, wants: Collection[str]) -> dict[str, Tensor]:
    """The scores beside log p that are wanted, from all probabilities [S, V].

    Tokens that cannot be said do not count: -p log p is 0 at p = 0.
    """
    found = {}
    if "log_collision" in wants:
        found["log_collision"] = p.square().sum(-1).log()  # the norm of p drifts: 2e-4 at 200,000 tokens
    if "entropy" in wants:
        found["entropy"] = torch.special.entr(p).sum(-1)
    return found


@dataclass(frozen=True, slots=True)
class LinearHead:
    """A linear output layer and what follows it; the matrix products run in the type of the weight.

    Args:
        weight: [V, d].
        bias: [V], or None.
        transform: of the logits.
    """

    weight: Tensor
    bias: Tensor | None
    transform: LogitTransform

    def read(
        self, hidden: Tensor, tokens: Tensor, wants: Collection[str] = (), *, error: bool = False
    ) -> tuple[TokenScores, Tensor | None]:
        """Scores of a chunk and, on request, [S, V] its error: the gradient of -log p(token) by the layer's output."""
        values = self.transform(precise(linear(hidden, self.weight, self.bias)))
        # in place, unless the values are read again for the slope of a soft-cap
        log_p = torch.log_softmax(values, -1, out=None if error and self.transform.softcap is not None else values)
        at = tokens[:, None]
        logp = log_p.gather(-1, at)[:, 0]
        if not error and not wants:
            return TokenScores(logp), None
        p = log_p.exp_()
        scores = TokenScores(logp, **by_products(p, wants))
        if not error:
            return scores, None
        p.scatter_add_(-1, at, p.new_full((), -1.0).expand(at.shape))
        return scores, self.transform.back_(p, values).to(self.weight.dtype)


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    *,
    transform: LogitTransform,
    wants: Collection[str],
    chunk: int,
    cache: int,
) -> TokenScores:
    """Scores at each position, in chunks; the gradient reaches the hidden states and the layer's parameters.

    Args:
        hidden: [S, d], of the type that the products run in.
        weight: [V, d].
        bias: [V], or None.
        tokens: [S].
        transform: of the logits.
        wants: the scores wanted beside log p.
        chunk: positions at a time.
        cache: bytes of errors kept for the backward; beyond it they are made anew there.
    """
    trained = weight.requires_grad or (bias is not None and bias.requires_grad)
    if not torch.is_grad_enabled() or not (trained or hidden.requires_grad):
        head = _typed(hidden, weight, bias, transform)
        pieces = zip(hidden.split(chunk), tokens.split(chunk), strict=True)
        return TokenScores.joined([head.read(states, wanted, wants)[0] for states, wanted in pieces])
    if trained:
        return TokenScores(
            *cast(Any, _Trained.apply)(hidden, weight, bias, tokens, transform, tuple(wants), chunk, cache)
        )
    return TokenScores(*cast(Any, _Frozen.apply)(hidden, weight, bias, tokens, transform, tuple(wants), chunk))


def _typed(hidden: Tensor, weight: Tensor, bias: Tensor | None, transform: LogitTransform) -> LinearHead:
    return LinearHead(weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype), transform)


class _Frozen(torch.autograd.Function):
    """Keeps the gradient of log p by the hidden state: u = transform' * (W[y] - p W), as large as the states."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        transform: LogitTransform,
        wants: tuple[str, ...],
        chunk: int,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        head = _typed(hidden, weight, bias, transform)
        parts, unit = [], torch.empty_like(hidden)
        for states, wanted, slope in zip(hidden.split(chunk), tokens.split(chunk), unit.split(chunk), strict=True):
            scores, error = head.read(states, wanted, wants, error=True)
            torch.mm(cast(Tensor, error), head.weight, out=slope)
            parts.append(scores)
            del error  # before the next is made: it is as large as the logits
        ctx.save_for_backward(unit)
        return _outputs(ctx, parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        (unit,) = ctx.saved_tensors
        return (unit * -grad[:, None]).to(unit.dtype), *[None] * 6


class _Trained(torch.autograd.Function):
    """Keeps the errors of the first chunks, as far as the budget goes, and makes the others anew."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        transform: LogitTransform,
        wants: tuple[str, ...],
        chunk: int,
        cache: int,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        head = _typed(hidden, weight, bias, transform)
        parts, kept = [], []
        for states, wanted in zip(hidden.split(chunk), tokens.split(chunk), strict=True):
            cache -= len(states) * len(weight) * hidden.element_size()
            scores, error = head.read(states, wanted, wants, error=cache >= 0)
            parts.append(scores)
            if error is not None:
                kept.append(error)
        ctx.transform, ctx.chunk = transform, chunk
        ctx.save_for_backward(hidden, weight, bias, tokens, *kept)
        return _outputs(ctx, parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        hidden, weight, bias, tokens, *kept = ctx.saved_tensors
        to_hidden, to_weight, to_bias = ctx.needs_input_grad[:3]
        # an enclosing autocast would round what ran in full precision in the forward
        with torch.autocast(hidden.device.type, enabled=False):
            head = _typed(hidden, weight, bias, ctx.transform)
            grad_hidden = torch.empty_like(hidden) if to_hidden else None
            # in full precision: a sum of many chunks in half precision would lose the small ones
            grad_weight, grad_bias = (
                torch.zeros_like(own, dtype=torch.promote_types(own.dtype, torch.float32)) if needed else None
                for own, needed in ((weight, to_weight), (bias, to_bias))
            )
            for number, start in enumerate(range(0, len(tokens), ctx.chunk)):
                rows = slice(start, start + ctx.chunk)
                states, scale = hidden[rows], -grad[rows, None]
                made = None if number < len(kept) else head.read(states, tokens[rows], error=True)[1]
                error = cast(Tensor, kept[number] if made is None else made)
                if grad_hidden is not None:
                    grad_hidden[rows] = (error @ head.weight) * scale
                if grad_weight is not None:
                    _add_product(grad_weight, error.t(), (states * scale).to(error.dtype))
                if grad_bias is not None:
                    grad_bias.add_((error.t() @ scale.to(error.dtype))[:, 0])
                del made, error
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            *[None] * 6,
        )


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)


def _outputs(ctx: Any, parts: list[TokenScores]) -> tuple[Tensor, Tensor | None, Tensor | None]:
    scores = TokenScores.joined(parts)
    ctx.mark_non_differentiable(*(own for own in (scores.log_collision, scores.entropy) if own is not None))
    return scores.logp, scores.log_collision, scores.entropy
