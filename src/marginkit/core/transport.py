"""APLOT's margin: entropic optimal transport between the chosen and the rejected responses of a batch."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from marginkit.core.evidence import untied
from marginkit.core.parts import target
from marginkit.core.tensors import Labels, PairScores, Population, Target

_ITERATIONS = 50


def entropic_plan(cost: Float[Tensor, "row column"], *, eps: float, iterations: int) -> Float[Tensor, "row column"]:
    """The plan P with uniform marginals that minimises <P, cost> - eps * entropy(P), by Sinkhorn's steps in logs.

    Args:
        cost: [N, N].
        eps: weight of the entropy, in the unit of the cost.
        iterations: of both scalings.

    Returns:
        [N, N], summing to 1; the columns exactly to 1 / N.

    Example:
        >>> entropic_plan(torch.zeros(2, 2), eps=0.1, iterations=5)
        tensor([[0.2500, 0.2500],
                [0.2500, 0.2500]])

    Source: Cuturi, arXiv 1306.0895, algorithm 1.
    """
    log_kernel = -cost / eps
    log_mass = -math.log(len(cost))
    g = torch.zeros_like(cost[0])
    for _ in range(iterations):
        f = log_mass - torch.logsumexp(log_kernel + g, 1)
        g = log_mass - torch.logsumexp(log_kernel + f[:, None], 0)
    return torch.exp(log_kernel + f[:, None] + g)


@target(needs={"head", "hidden"}, makes={"margin", "keep"}, couples="batch", training_only=True)
def aplot(
    labels: Labels,
    gap: Float[Tensor, " pair"],
    population: Population | None,
    scores: PairScores,
    *,
    eps: float,
    semantic: float,
    norm: Literal["row", "none"] = "row",
) -> Target:
    """A margin from optimal transport over the batch: margin[i] = N * sum_j plan[i, j] * cost[i, j].

    cost[i, j] = (1 - semantic) * (1 - sigmoid(|r+[i] - r-[j]|)) + semantic * cos(h+[i], h-[j]); the plan minimises
    <plan, cost> - eps * entropy(plan) under uniform marginals, in 50 Sinkhorn steps. Ties take no part.

    Args:
        labels: only `tie` is read.
        gap: [P] logits, not used.
        population: not used; the batch is the pairs of the call.
        scores: `head` in logits, `hidden` [P, 2, d].
        eps: weight of the entropy.
        semantic: share of the cosine in the cost, in [0, 1].
        norm: row: as above, an average over row i of the cost; none: without the factor N, which fades as 1 / N.

    Returns:
        Target with ties left out.

    Raises:
        BadInput: a score is missing.

    Example:
        >>> scores = PairScores(head=torch.tensor([[1.0, 0.0]]), hidden=torch.ones(1, 2, 3))
        >>> aplot(Labels(), torch.ones(1), None, scores, eps=0.1, semantic=0.1).margin
        tensor([0.3420])

    Source: APLOT, arXiv 2510.10963. Its equations and code are not public: the form is that of a re-implementation
    (Lin et al., "From soft targets to reward signals", appendix A.3), weights 0.9 and 0.1 included; `norm=row` and the
    read-out of `hidden` for decoders are reconstructed.
    """
    assert scores.head is not None
    assert scores.hidden is not None
    keep = torch.ones_like(gap, dtype=torch.bool) if labels.tie is None else ~labels.tie
    margin = torch.zeros_like(gap)
    if bool(keep.any()):
        head = scores.head[keep].to(gap.dtype)
        hidden = torch.nn.functional.normalize(scores.hidden[keep].to(gap.dtype), dim=-1)
        reward_cost = torch.sigmoid(-(head[:, :1] - head[:, 1]).abs())
        cost = (1.0 - semantic) * reward_cost + semantic * hidden[:, 0] @ hidden[:, 1].T
        margin[keep] = (entropic_plan(cost, eps=eps, iterations=_ITERATIONS) * cost).sum(1)
        if norm == "row":
            margin = margin * int(keep.sum())
    return Target.of(gap, margin=margin, keep=untied(labels))
