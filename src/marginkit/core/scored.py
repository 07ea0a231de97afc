"""Targets that read scores: a reward model's opinion, the policy's own confidence, the lengths. All detached."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from marginkit.core.evidence import untied
from marginkit.core.parts import target
from marginkit.core.rewards import tokens
from marginkit.core.tensors import Labels, PairScores, Population, Target


@target(needs={"rm_head"}, makes={"weight", "keep"})
def madpo_weight(
    labels: Labels,
    gap: Float[Tensor, " pair"],
    population: Population | None,
    scores: PairScores,
    *,
    c_max: float,
    c_min: float | None = None,
    tau: float,
    lam: float,
    branch: Literal["both", "amplify", "dampen"] = "both",
) -> Target:
    """A weight from a reward model's gap h: weight = sigmoid(c(|h|) h) / sigmoid(h) where h > -tau, else 1.

    c(m) = c_min + (c_max - c_min) / (1 + K exp(lam (m - tau))), K = (c_max - 1) / (1 - c_min), so c(tau) = 1. In logs.

    Args:
        labels: only `tie` is read.
        gap: [P] logits, not used.
        population: not used.
        scores: `rm_head`, logits of the reward model; its scale matters, calibrated Bradley-Terry logits are assumed.
        c_max: how much a small gap is amplified, >= 1.
        c_min: how much a large gap is dampened, <= 1; None: 1 / c_max.
        tau: logits; the gap that is left as it is.
        lam: per logit; how sharp the change is.
        branch: both; amplify keeps c at 1 or more, dampen at 1 or less.

    Returns:
        Target with ties left out.

    Raises:
        BadInput: `rm_head` is missing.

    Example:
        >>> scores = PairScores(rm_head=torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        >>> madpo_weight(Labels(), torch.zeros(2), None, scores, c_max=4.0, tau=6.906755, lam=1.0).weight
        tensor([1.3423, 0.0696])

    Source: MADPO, arXiv 2510.05342; code sirano1004/Margin-Apative-Direct-Preference-Optimization at 306779b (v1). The
    paper's own typeset weight was not found: the code is the authority. `branch` is reconstructed from the ablation.
    Deviation: there c_max = c_min = 1 is 0 / 0 (here weight 1), and h below -88 gives inf * 0 (here weight 1).
    """
    assert scores.rm_head is not None
    h = scores.rm_head[:, 0] - scores.rm_head[:, 1]
    low = 1.0 / c_max if c_min is None else c_min
    if c_max == 1.0 or low == 1.0:  # K is 0 or infinite, and c is 1 everywhere
        return Target.of(gap, keep=untied(labels))
    steepness = math.log((c_max - 1.0) / (1.0 - low))
    c = low + (c_max - low) * torch.sigmoid(-(steepness + lam * (h.abs() - tau)))
    if branch != "both":
        c = c.clamp(min=1.0) if branch == "amplify" else c.clamp(max=1.0)
    inside = h > -tau
    safe = h.clamp(min=-tau)
    weight = torch.where(inside, torch.exp(logsigmoid(c * safe) - logsigmoid(safe)), torch.ones_like(h))
    return Target.of(gap, weight=weight, keep=untied(labels))


@target(needs={"logp", "length", "log_collision"}, makes={"weight", "keep"})
def wpo_weight(
    labels: Labels, gap: Float[Tensor, " pair"], population: Population | None, scores: PairScores, *, clamp: bool
) -> Target:
    """A weight from how likely the policy itself is to say both responses: weight = exp(q(chosen) + q(rejected)).

    q = mean over response tokens of log pi(token) - log sum_v pi(v)^2: 0 under a uniform policy.

    Args:
        labels: only `tie` is read.
        gap: [P] logits, not used.
        population: not used.
        scores: `logp` and `log_collision` in nats, summed; `length` in tokens.
        clamp: keep the weight at 1 or less; without it at e^30 or less.

    Returns:
        Target with ties left out.

    Raises:
        BadInput: a score is missing.

    Example:
        >>> n = torch.tensor([[10.0, 10.0]])
        >>> scores = PairScores(logp=-2.0 * n, log_collision=torch.tensor([[-15.0, -13.0]]), length=n)
        >>> wpo_weight(Labels(), torch.zeros(1), None, scores, clamp=True).weight
        tensor([0.3012])

    Source: WPO, arXiv 2406.11827, equation 5; code wzhouad/WPO at a104458. TRL's `use_weighting` has no clamp.
    """
    assert scores.logp is not None
    assert scores.log_collision is not None
    q = (scores.logp - scores.log_collision) / tokens(scores)
    log_weight = q.sum(1)
    # without a clamp an exponent of 30 is already a weight of 1e13
    log_weight = log_weight.clamp(max=0.0 if clamp else 30.0)
    return Target.of(gap, weight=torch.exp(log_weight), keep=untied(labels))


@target(needs={"length"}, makes={"margin", "keep"})
def length_margin(
    labels: Labels,
    gap: Float[Tensor, " pair"],
    population: Population | None,
    scores: PairScores,
    *,
    alpha: float,
    sign: Literal["derived", "minus"] = "derived",
) -> Target:
    """A longer chosen response gets a smaller push: margin = -alpha * (|chosen| - |rejected|).

    Args:
        labels: only `tie` is read.
        gap: [P] logits, not used.
        population: not used.
        scores: `length` in tokens.
        alpha: logits a token.
        sign: derived: that of max E[r - alpha |y|] - beta KL; minus: the opposite, as two later papers print it.

    Returns:
        Target with ties left out.

    Raises:
        BadInput: `length` is missing.

    Example:
        >>> scores = PairScores(length=torch.tensor([[30.0, 20.0]]))
        >>> length_margin(Labels(), torch.zeros(1), None, scores, alpha=0.05).margin
        tensor([-0.5000])

    Source: R-DPO, arXiv 2403.19159. The paper's own equation was not found: the sign is derived from its objective.
    """
    assert scores.length is not None
    difference = scores.length[:, 0] - scores.length[:, 1]
    margin = alpha * difference if sign == "minus" else -alpha * difference
    return Target.of(gap, margin=margin, keep=untied(labels))
