"""Objectives that look at each reward by itself, not only at the gap: the zero of the reward must mean something.

Each measures rewards from `target.zero`, which is 0 unless a target sets it.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from marginkit.core.objectives import logistic
from marginkit.core.parts import objective
from marginkit.core.tensors import Rewards, Target

_SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "hinge": lambda rho: torch.relu(1.0 - rho),
    "logistic": lambda rho: softplus(-rho),
    "squared": lambda rho: (1.0 - rho) ** 2,
    "exponential": lambda rho: torch.exp(-rho),
    "truncated": lambda rho: torch.relu(1.0 - rho) ** 2,
    "savage": lambda rho: torch.sigmoid(-rho) ** 2,
}


def _from_zero(rewards: Rewards, target: Target) -> tuple[Tensor, Tensor]:
    """Rewards of chosen and rejected, measured from their zero."""
    value = rewards.value - target.zero
    return value[:, 0], value[:, 1]


@objective(uses={"zero"}, asks="anchored", smooth=False, finite_to=80.0)
def balanced(
    rewards: Rewards,
    target: Target,
    *,
    alpha: float,
    f: Literal["hinge", "logistic", "squared", "exponential", "truncated", "savage"] = "hinge",
) -> Float[Tensor, " pair"]:
    """Train whichever of the two lags: L = f(rho), rho = min(r_w, -alpha * r_l).

    f: hinge max(0, 1 - rho), logistic log(1 + e^-rho), squared (1 - rho)^2, exponential e^-rho, truncated
    max(0, 1 - rho)^2, savage 1 / (1 + e^rho)^2. Off the tie one of the two rewards gets no gradient; where both are
    negative, the chosen one is trained.

    Args:
        rewards: [P, 2] logits.
        target: `zero`, [P, 2].
        alpha: how far the rejected reward must fall for a unit of the chosen one: 1 / alpha; in (0, 1].
        f: the shape.

    Returns:
        [P].

    Raises:
        ShapeError: shapes do not fit.

    Example:
        >>> rewards = Rewards(torch.tensor([[0.2, -0.6], [-0.3, -1.0]]))
        >>> balanced(rewards, Target.of(rewards.gap), alpha=0.3, f="hinge")
        tensor([0.8200, 1.3000])

    Source: BPO, arXiv 2506.03557, equation 5; code sunlin-ai/BPO at d882c0f (alpha is 0.3 in its two `_alpha` losses, 1
    in the other four).
    """
    chosen, rejected = _from_zero(rewards, target)
    return _SHAPES[f](torch.minimum(chosen, -alpha * rejected))


@objective(uses={"margin", "scale", "prob", "zero"}, asks="anchored", smooth=False)
def dpop(rewards: Rewards, target: Target, *, lam: float) -> Float[Tensor, " pair"]:
    """DPO with a penalty where the chosen response loses ground: L = logistic of the gap - lam * max(0, -r_w).

    Args:
        rewards: [P, 2] logits.
        target: `margin`, `scale` and `prob`, each [P]; `zero`, [P, 2].
        lam: how much the penalty counts.

    Returns:
        [P] nats.

    Raises:
        ShapeError: shapes do not fit.

    Example:
        >>> rewards = Rewards(torch.tensor([[0.2, -0.6], [-0.3, -1.0]]))
        >>> dpop(rewards, Target.of(rewards.gap), lam=50.0)
        tensor([ 0.3711, 14.3000])

    Source: DPO-Positive (Smaug), arXiv 2402.13228, equation 3; code as in sunlin-ai/BPO at d882c0f.
    """
    lost = torch.relu(-(rewards.chosen - target.zero[:, 0]))
    return logistic(Rewards(torch.stack((rewards.chosen - lam * lost, rewards.rejected), 1)), target)


@objective(uses={"zero"}, asks="anchored")
def calibrated(rewards: Rewards, target: Target, *, beta: float, kappa: float) -> Float[Tensor, " pair"]:
    """DPO whose rewards are pulled to fixed levels: L = -log sigmoid(gap) + kappa * ((r_w - 1/2b)^2 + (r_l + 1/2b)^2).

    The rewards are log-ratios (nats): beta appears in the levels only. At its usual 0.001 they are +-500 nats.

    Args:
        rewards: [P, 2] log-ratios, in nats.
        target: `zero`, [P, 2].
        beta: 1 / nats; sets the levels +-1 / (2 beta).
        kappa: how much the squares count.

    Returns:
        [P].

    Raises:
        ShapeError: shapes do not fit.

    Example:
        >>> rewards = Rewards(torch.tensor([[2.0, -6.0]]))
        >>> calibrated(rewards, Target.of(rewards.gap), beta=0.01, kappa=0.5)
        tensor([2120.0002])

    Source: Cal-DPO, arXiv 2412.14516; code tengxiao1/Cal-DPO at 7d16b46 (kappa 0.5). The paper's own coefficient was
    not found.
    """
    chosen, rejected = _from_zero(rewards, target)
    level = 0.5 / beta
    return softplus(rejected - chosen) + kappa * ((chosen - level) ** 2 + (rejected + level) ** 2)


@objective(uses={"zero"}, asks="anchored")
def nca(rewards: Rewards, target: Target) -> Float[Tensor, " pair"]:
    """Noise-contrastive alignment of a pair: L = -log sigmoid(r_w) - (log sigmoid(-r_w) + log sigmoid(-r_l)) / 2.

    Args:
        rewards: [P, 2] logits.
        target: `zero`, [P, 2].

    Returns:
        [P] nats.

    Raises:
        ShapeError: shapes do not fit.

    Example:
        >>> rewards = Rewards(torch.tensor([[0.02, -0.06]]))
        >>> nca(rewards, Target.of(rewards.gap))
        tensor([1.3666])

    Source: NCA, arXiv 2402.05369, equation 11 for two responses; `nca_pair` of TRL.
    """
    chosen, rejected = _from_zero(rewards, target)
    return softplus(-chosen) + 0.5 * softplus(chosen) + 0.5 * softplus(rejected)


@objective(uses={"zero"}, asks="anchored")
def bco(rewards: Rewards, target: Target) -> Float[Tensor, " pair"]:
    """Two classifications: L = -log sigmoid(r_w) - log sigmoid(-r_l).

    Args:
        rewards: [P, 2] logits.
        target: `zero`, [P, 2].

    Returns:
        [P] nats.

    Raises:
        ShapeError: shapes do not fit.

    Example:
        >>> rewards = Rewards(torch.tensor([[0.2, -0.6]]))
        >>> bco(rewards, Target.of(rewards.gap))
        tensor([1.0356])

    Source: BCO, arXiv 2404.04656, without its running shift; `bco_pair` of TRL.
    """
    chosen, rejected = _from_zero(rewards, target)
    return softplus(-chosen) + softplus(rejected)


@objective(uses={"zero"}, asks="anchored")
def apo_zero(rewards: Rewards, target: Target) -> Float[Tensor, " pair"]:
    """Chosen up, rejected down, both against the reference: L = 1 - sigmoid(r_w) + sigmoid(r_l).

    Args:
        rewards: [P, 2] logits.
        target: `zero`, [P, 2].

    Returns:
        [P], in [0, 2].

    Raises:
        ShapeError: shapes do not fit.

    Example:
        >>> rewards = Rewards(torch.tensor([[0.2, -0.6]]))
        >>> apo_zero(rewards, Target.of(rewards.gap))
        tensor([0.8045])

    Source: APO, arXiv 2408.06266, equation 7; `apo_zero` of TRL.
    """
    chosen, rejected = _from_zero(rewards, target)
    return torch.sigmoid(-chosen) + torch.sigmoid(rejected)


@objective(uses={"prob", "zero"}, asks="anchored")
def sppo(rewards: Rewards, target: Target, *, eta: float) -> Float[Tensor, " pair"]:
    """Each log-ratio is to equal its chance of winning: L = ((a_w - eta (p - 1/2))^2 + (a_l + eta (p - 1/2))^2) / 2.

    Args:
        rewards: [P, 2] log-ratios a, in nats.
        target: `prob`, [P]; `zero`, [P, 2].
        eta: nats; the log-ratio of a response that always wins is eta / 2.

    Returns:
        [P] squared nats.

    Raises:
        ShapeError: shapes do not fit.

    Example:
        >>> rewards = Rewards(torch.tensor([[2.0, -6.0]]))
        >>> sppo(rewards, Target.of(rewards.gap), eta=1000.0)
        tensor([246020.])

    Source: SPPO, arXiv 2405.00675, equation 4.7; code uclaml/SPPO at 5e61c4e, whose P is PairRM's. TRL's `sppo_hard` is
    twice this at prob 1, with eta = 1 / beta.
    """
    chosen, rejected = _from_zero(rewards, target)
    level = eta * (target.prob - 0.5)
    return 0.5 * ((chosen - level) ** 2 + (rejected + level) ** 2)


@objective(uses={"zero"}, asks="anchored")
def kto(rewards: Rewards, target: Target, *, lam_d: float, lam_u: float) -> Float[Tensor, " pair"]:
    """Gains and losses against a reference level: L = lam_d * sigmoid(z_w - r_w) + lam_u * sigmoid(r_l - z_l).

    Args:
        rewards: [P, 2] logits.
        target: `zero` [P, 2]: the levels z.
        lam_d: weight of the desirable response.
        lam_u: weight of the undesirable one.

    Returns:
        [P].

    Raises:
        ShapeError: shapes do not fit.

    Example:
        >>> rewards = Rewards(torch.tensor([[0.2, -0.6]]))
        >>> kto(rewards, Target.of(rewards.gap, zero=torch.full((1, 2), 0.07)), lam_d=1.0, lam_u=1.0)
        tensor([0.8060])

    Source: KTO, arXiv 2402.01306, equation 8, for pairs; code ContextualAI/HALOs at 4831988.
    """
    chosen, rejected = _from_zero(rewards, target)
    return lam_d * torch.sigmoid(-chosen) + lam_u * torch.sigmoid(rejected)


@objective(uses={"margin", "scale", "prob", "zero"}, asks="own", finite_to=1e4)
def centred_logistic(rewards: Rewards, target: Target, *, c: float) -> Float[Tensor, " pair"]:
    """Bradley-Terry with rewards pulled to a mean of 0: L = logistic + c * (r_w + r_l)^2.

    Args:
        rewards: [P, 2] logits.
        target: `margin`, `scale` and `prob`, each [P]; `zero`, [P, 2].
        c: how much the pull counts.

    Returns:
        [P].

    Raises:
        ShapeError: shapes do not fit.

    Example:
        >>> rewards = Rewards(torch.tensor([[2.0, -1.0]]))
        >>> centred_logistic(rewards, Target.of(rewards.gap), c=0.01)
        tensor([0.0586])

    Source: arXiv 2312.09244, equation 2; `center_rewards_coefficient` of TRL's RewardTrainer.
    """
    chosen, rejected = _from_zero(rewards, target)
    return logistic(rewards, target) + c * (chosen + rejected) ** 2


@objective(per="response", uses={"zero"}, matches=True, asks="own", normaliser="response")
def value_squared(rewards: Rewards, target: Target) -> Float[Tensor, " response"]:
    """Each reward is to equal its level: L = (r - zero)^2.

    Args:
        rewards: [R] logits.
        target: `zero`, [R].

    Returns:
        [R] squared logits.

    Raises:
        ShapeError: shapes do not fit.

    Example:
        >>> rewards = Rewards(torch.tensor([1.5]))
        >>> value_squared(rewards, Target.of(rewards.value, zero=torch.tensor([1.0])))
        tensor([0.2500])

    Source: the regression reward models of HelpSteer, arXiv 2311.09528; code NVIDIA/NeMo-Aligner at af2b3bd.
    """
    return (rewards.value - target.zero) ** 2
