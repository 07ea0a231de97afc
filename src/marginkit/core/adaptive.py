"""Targets that depend on what other pairs look like: the population of gaps is handed in, nothing is kept here.

A pair is placed in its population by its own gap alone, so its target does not depend on which other pairs share its
call. With an empty population every target is that of the method without adaptation.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from marginkit.core.evidence import untied
from marginkit.core.memory import DECAY
from marginkit.core.parts import target
from marginkit.core.rewards import implicit_mean
from marginkit.core.tensors import Labels, PairScores, Population, Target

_STEPS = 20  # gamma-PO's exponentiated-gradient steps
_HALVINGS = 40  # of a bracket gamma / tau wide: 1e-11 of it
# a policy that is its reference has gaps of rounding only: nats of a sum of log-probabilities, and of their mean
_NOISE, _NOISE_A_TOKEN = 1e-3, 1e-5
_MAX_EXPONENT = 20.0  # AMaPO: exp(20) = 5e8, far beyond the 2.5 standard deviations of its batches of eight


def _pool(population: Population, size: int) -> Tensor:
    """The gaps of this pass, filled up with past ones, drawn without replacement, to `size`; gaps of now come last."""
    now = population.gaps
    past = population.past
    room = max(0, size - len(now))
    if past is None or not len(past) or not room:
        return now
    order = torch.randperm(len(past), generator=population.generator, device="cpu")[:room]
    return torch.cat((past[order.to(past.device)].to(now), now))


@target(makes={"margin", "keep"}, couples="population", remembers="queue")
def gamma_po(
    labels: Labels,
    gap: Float[Tensor, " pair"],
    population: Population,
    *,
    gamma: float,
    tau: float,
    pool: int = 256,
    solver: Literal["released", "fixed_point"] = "released",
    centred: bool,
) -> Target:
    """A margin that grows with the pair's own gap: margin = gamma * N * p, p of least loss over the pool.

    p minimises mean_i -log sigmoid(r_i - gamma N p_i) + tau KL(p || uniform); at the optimum
    p_i ~ exp(-(gamma / tau) sigmoid(margin_i - r_i)), so margins lie within gamma * exp(+-gamma / tau).

    Args:
        labels: only `tie` is read.
        gap: [P] logits, r.
        population: gaps of the pass and of the past, in logits.
        gamma: logits; the mean margin of the pool.
        tau: weight of the KL term; large: every margin is gamma.
        pool: how many gaps, past ones included; more pairs than that make a larger pool.
        solver: released: the margins at the start of the 20th exponentiated-gradient step; fixed_point: converged.
        centred: take gamma off again, so that the pool's mean offset is 0 (gamma-DPO).

    Returns:
        Target with ties left out.

    Raises:
        BadInput: no population.

    Example:
        >>> r = torch.tensor([-2.0, -0.5, 0.0, 1.0, 3.0])
        >>> seen = Population(rewards=torch.stack((r, torch.zeros(5)), 1))
        >>> gamma_po(Labels(), r, seen, gamma=4.0, tau=10.0, centred=False).margin
        tensor([3.9064, 3.9207, 3.9323, 3.9785, 4.2621])

    Source: gamma-PO, arXiv 2506.03690; code sunjie279/gammaPO at 4f2e09c (`get_gamma_dq`).
    Deviation: there more pairs than the pool are an error, and evaluation adds its gaps to the queue.
    """
    seen = _pool(population, pool).to(gap)
    if not len(seen) or gamma == 0.0:
        margin = torch.full_like(gap, gamma)
    elif solver == "released":
        margin = _exponentiated_gradient(gap, seen, gamma, tau)
    else:
        margin = _fixed_point(gap, seen, gamma, tau)
    return Target.of(gap, margin=margin - gamma if centred else margin, keep=untied(labels))


def _exponentiated_gradient(gap: Tensor, pool: Tensor, gamma: float, tau: float) -> Tensor:
    """The released steps for the pool, and beside it for each pair under the pool's normaliser.

    A pair whose gap is in the pool moves exactly as its copy there does.
    """
    size = len(pool)
    eta = min(0.5 / tau, 1.0)
    both = torch.cat((pool, gap))
    share = torch.full_like(both, 1.0 / size)
    for _ in range(_STEPS - 1):
        slope = tau * (1.0 + torch.log(size * (share + 1e-10))) + gamma * torch.sigmoid(gamma * size * share - both)
        # the common factor cancels in the normaliser; taking it out keeps exp() in range for a large eta * tau
        moved = share * torch.exp(-eta * (slope - slope[:size].min()))
        share = moved / moved[:size].sum()
    return gamma * size * share[size:]


def _fixed_point(gap: Tensor, pool: Tensor, gamma: float, tau: float) -> Tensor:
    """P ~ exp(-(gamma / tau) sigmoid(margin - r)), solved for the normaliser by bisection, and inside it per pair."""

    def margins(r: Tensor, log_level: Tensor) -> Tensor:
        # margin -> log margin - level + (gamma / tau) sigmoid(margin - r) is increasing: one root, bracketed
        low, high = log_level - gamma / tau, log_level.expand_as(r)
        low = low.expand_as(r)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            over = middle - log_level + gamma / tau * torch.sigmoid(torch.exp(middle) - r) > 0
            low, high = torch.where(over, low, middle), torch.where(over, middle, high)
        return torch.exp((low + high) / 2)

    base = torch.tensor(math.log(gamma), dtype=pool.dtype, device=pool.device)
    low, high = base, base + gamma / tau
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        over = margins(pool, middle).mean() > gamma
        low, high = torch.where(over, low, middle), torch.where(over, middle, high)
    return margins(gap, (low + high) / 2)


@target(makes={"margin", "keep"}, couples="population")
def amapo(
    labels: Labels,
    gap: Float[Tensor, " pair"],
    population: Population,
    *,
    beta: float,
    form: Literal["released", "paper"] = "released",
) -> Target:
    """A margin for the pairs behind the rest: margin = beta * exp(z * mean) where D < mean, else 0.

    D = gap / beta; z = (mean - D) / sd, with mean and unbiased sd of the population's D. `paper`: margin = beta * exp(z
    * beta * mean) where z * mean > 0. The exponent is kept within +-20; with fewer than two gaps, or equal ones, 0.

    Args:
        labels: only `tie` is read.
        gap: [P] logits, beta * D.
        population: gaps of the pass, in logits.
        beta: logits per nat a token, that of the reward.
        form: released (the code) or paper (as two notes transcribe it; not checked against the paper).

    Returns:
        Target with ties left out.

    Raises:
        BadInput: no population.

    Example:
        >>> D = torch.tensor([-0.5, 0.0, 0.5, 1.0])
        >>> seen = Population(rewards=torch.stack((2 * D, torch.zeros(4)), 1))
        >>> amapo(Labels(), 2 * D, seen, beta=2.0).margin
        tensor([2.6741, 2.2033, 0.0000, 0.0000])

    Source: AMaPO, arXiv 2511.09385; code Shiroha-Offical/AMaPO at c6c89cc.
    Deviation: there one pair or equal gaps give a NaN that a closed gate hides, and the exponent has no bound.
    """
    seen = population.gaps.to(gap) / beta
    own = gap / beta
    if len(seen) < 2:
        return Target.of(gap, keep=untied(labels))
    mean, sd = seen.mean(), seen.std()
    level = 16 * torch.finfo(gap.dtype).eps * seen.abs().max()  # rounding of equal gaps is no spread
    z = (mean - own) / sd.clamp(min=torch.finfo(gap.dtype).tiny)
    exponent = z * mean if form == "released" else beta * z * mean
    open_gate = (own < mean if form == "released" else z * mean > 0) & (sd > level)
    exponent = torch.where(open_gate, exponent, torch.zeros_like(exponent)).clamp(-_MAX_EXPONENT, _MAX_EXPONENT)
    margin = torch.where(open_gate, beta * torch.exp(exponent), torch.zeros_like(gap))
    return Target.of(gap, margin=margin, keep=untied(labels))


def _moments(population: Population, ema: str) -> tuple[Tensor, Tensor] | None:
    """Mean and standard deviation: the running ones where they are kept, else of the population; None if too few."""
    if population.mean is not None and population.sd is not None:
        if population.updates == 0:
            return None
        share = 1.0
        if population.updates is not None and ema == "corrected":
            share -= DECAY**population.updates
        return population.mean / share, population.sd / share
    if len(population.gaps) < 2:
        return None
    return population.gaps.mean(), population.gaps.std()


def _z_scores(values: Tensor, moments: tuple[Tensor, Tensor], *, noise: float) -> Tensor:
    """(value - mean) / sd, 0 where the spread is no more than the rounding of a forward pass."""
    mean, sd = (moment.to(values) for moment in moments)
    spread = sd > noise
    return torch.where(spread, (values - mean) / torch.where(spread, sd, torch.ones_like(sd)), torch.zeros_like(values))


@target(needs={"chance"}, makes={"scale", "weight", "keep"}, couples="population", remembers="moments")
def beta_scale(
    labels: Labels,
    gap: Float[Tensor, " pair"],
    population: Population,
    *,
    beta: float,
    a: float,
    rho: float,
    ema: Literal["released", "corrected"] = "released",
) -> Target:
    """A beta for the batch: scale = max(0.001, beta * (1 + a * (mean of kept A - running mean))) / beta.

    A = gap / beta, in nats.

    A share rho of the pairs is left out, drawn without replacement, those far from the running mean first: pairs are
    kept with probability ~ exp(-z^2 / 2), as the pairs with the largest log-probability + Gumbel noise. What is kept
    counts as much as all would: weight = N / kept.

    Args:
        labels: `tie`, `chance`.
        gap: [P] logits, beta * A.
        population: gaps of the pass and their chances; running mean and sd.
        beta: logits per nat, that of the reward.
        a: per nat; how far beta follows the gaps.
        rho: share of pairs left out, in [0, 1).
        ema: released: the running mean starts at 0 and is not corrected; corrected: divided by 1 - 0.9^updates.

    Returns:
        Target with ties and the pairs not drawn left out.

    Raises:
        BadInput: no population, or no chance.

    Example:
        >>> A = torch.tensor([1.0, 2.0, 3.0, 10.0])
        >>> seen = Population(torch.stack((A, 0 * A), 1), mean=torch.tensor(0.4), sd=torch.tensor(0.408), updates=1)
        >>> beta_scale(Labels(chance=torch.full((4,), 0.5)), A, seen, beta=1.0, a=0.6, rho=0.0).scale
        tensor([3.1600, 3.1600, 3.1600, 3.1600])

    Source: beta-DPO, arXiv 2407.08639; code junkangwu/beta-DPO at 1629047.
    Deviation: there evaluation moves the running values, equal gaps divide by 0, each rank divides by its own count,
    and a pass of few pairs may keep none (here one at least). The scale of A (with or without beta in the
    paper) was not found; the code's, without, is used.
    """
    assert labels.chance is not None
    moments = _moments(population, ema)
    if moments is None:
        return Target.of(gap, keep=untied(labels))
    # population and running values are rewards in logits; A is in nats
    mean, sd = moments[0] / beta, moments[1] / beta
    seen = population.gaps.to(gap) / beta
    chance = population.chance.to(gap) if population.chance is not None else torch.full_like(seen, 0.5)
    kept = max(1, int(len(seen) * (1.0 - rho) + 1e-9))
    keep = torch.ones_like(gap, dtype=torch.bool)
    among = seen
    if kept < len(seen):
        keys = _gumbel_keys(seen, chance, (mean, sd))
        level = keys.topk(kept).values[-1]
        keep = _gumbel_keys(gap / beta, labels.chance.to(gap.dtype), (mean, sd)) >= level
        among = seen[keys >= level]
    follow = 1.0 + a * ((among.mean() if len(among) else mean) - mean)
    used = (beta * follow).clamp(min=1e-3)
    weight = len(seen) / kept if kept < len(seen) else 1.0
    scale = (used / beta).to(gap.dtype).expand_as(gap)
    return Target.of(gap, scale=scale, weight=weight, keep=keep & untied(labels))


def _gumbel_keys(values: Tensor, chance: Tensor, moments: tuple[Tensor, Tensor]) -> Tensor:
    tiny = torch.finfo(chance.dtype).tiny
    noise = -torch.log((-torch.log(chance.clamp(min=tiny))).clamp(min=tiny))
    return -0.5 * _z_scores(values, moments, noise=_NOISE) ** 2 + noise


@target(
    needs={"logp", "ref_logp", "length"},
    makes={"margin", "keep"},
    couples="population",
    remembers="moments",
    population_of=implicit_mean,
)
def alpha_margin(
    labels: Labels,
    gap: Float[Tensor, " pair"],
    population: Population,
    scores: PairScores,
    *,
    gamma: float,
    alpha: float,
    ema: Literal["released", "corrected"] = "released",
) -> Target:
    """A margin that grows with the pair's gain over the reference: margin = gamma + alpha * (G - mean) / sd.

    G = the gap of (log pi - log pi_ref) / |y|; mean and sd are running ones, this batch included.

    Args:
        labels: only `tie` is read.
        gap: [P] logits, not used.
        population: gaps G of the pass, in nats a token, and their running mean and sd.
        scores: `logp`, `ref_logp` in nats, summed; `length` in tokens.
        gamma: logits; the mean margin.
        alpha: logits a standard deviation.
        ema: released: the running values start at 0 and are not corrected, so that the first margins are up to ten
            times as wide; corrected: divided by 1 - 0.9^updates.

    Returns:
        Target with ties left out.

    Raises:
        BadInput: no population, or a score is missing.

    Example:
        >>> n = torch.full((3, 2), 20.0)
        >>> logp = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
        >>> seen = Population(logp / 20)
        >>> scores = PairScores(logp=logp, ref_logp=0 * n, length=n)
        >>> alpha_margin(Labels(), torch.zeros(3), seen, scores, gamma=1.5, alpha=0.5).margin
        tensor([2.0000, 1.5000, 1.0000])

    Source: alpha-DPO, arXiv 2410.10148; code junkangwu/alpha-DPO at fab3209 (there g = gamma / beta, alpha / beta).
    Deviation: there equal gaps divide by 0, and evaluation moves the running values.
    """
    moments = _moments(population, ema)
    if moments is None:
        return Target.of(gap, margin=gamma, keep=untied(labels))
    own = implicit_mean(scores, beta=1.0).gap.to(gap.dtype)
    return Target.of(gap, margin=gamma + alpha * _z_scores(own, moments, noise=_NOISE_A_TOKEN), keep=untied(labels))


@target(makes={"zero", "keep"}, couples="population")
def kto_zero(
    labels: Labels,
    gap: Float[Tensor, " pair"],
    population: Population,
    *,
    beta: float,
    z0: float | None = None,
) -> Target:
    """The reward level of an average response: zero = max(0, mean reward of the other half), or beta * z0 for both.

    The chosen response is measured from the mean of the rejected ones, the rejected from that of the chosen.

    Args:
        labels: only `tie` is read.
        gap: [P] logits, not used.
        population: rewards of the pass, in logits.
        beta: logits per nat, that of the reward.
        z0: nats; a level that is handed in. None: the means of the other half.

    Returns:
        Target with ties left out.

    Raises:
        BadInput: no population.

    Example:
        >>> kto_zero(Labels(), torch.zeros(1), Population(torch.tensor([[2.0, 0.5], [4.0, 0.5]])), beta=0.1).zero
        tensor([[0.5000, 3.0000]])

    Source: the paired KTO of junkangwu/alpha-DPO at fab3209; KTO, arXiv 2402.01306, estimates the level from
    mismatched prompts and responses instead, which needs more forward passes.
    """
    if z0 is not None:
        return Target.of(gap, zero=beta * z0, keep=untied(labels))
    if not len(population.rewards):
        return Target.of(gap, keep=untied(labels))
    level = population.rewards.to(gap).mean(0).clamp(min=0.0).flip(0)
    return Target.of(gap, zero=level.expand(len(gap), 2), keep=untied(labels))
