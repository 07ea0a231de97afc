"""Objectives: how the shortfall of a pair becomes a loss. Unreduced; the shell weights and averages."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from marginkit.core.parts import objective
from marginkit.core.tensors import Rewards, Target


@objective(uses={"margin", "prob", "scale"})
def logistic(rewards: Rewards, target: Target) -> Float[Tensor, " pair"]:
    """Bradley-Terry cross-entropy: L = -p log sigmoid(z) - (1 - p) log sigmoid(-z), z = scale*gap - margin.

    Computed as -log sigmoid(z) + (1 - p) z, which is stable, and exactly the hard-label loss at p = 1.

    Args:
        rewards: [P, 2] logits.
        target: `prob`, `margin` and `scale`, each [P].

    Returns:
        [P] nats, >= the binary entropy of p, which it reaches at z = log(p / (1 - p)).

    Raises:
        ShapeError: shapes do not fit.

    Example:
        >>> rewards = Rewards(torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
        >>> logistic(rewards, Target.of(rewards.gap, prob=torch.tensor([0.7, 1.0])))
        tensor([0.7269, 0.6931])

    Source: DPO, arXiv 2305.18290, equation 7 (p = 1); MMPO, arXiv 2410.03145, section 3.2 (p soft).
    """
    slack = slack_of(rewards, target)
    return -logsigmoid(slack) + (1.0 - target.prob) * slack


@objective(uses={"margin", "scale"})
def robust_logistic(rewards: Rewards, target: Target, *, eps: float) -> Float[Tensor, " pair"]:
    """Unbiased under flipped labels: L = (-(1 - eps) log sigmoid(z) + eps log sigmoid(-z)) / (1 - 2 eps).

    Its mean over labels that are flipped with probability eps is -log sigmoid(z) of the true ones. It is unbounded
    below: easy pairs are pushed on for ever.

    Args:
        rewards: [P, 2] logits.
        target: `margin` and `scale`, each [P].
        eps: probability that a label is flipped, in [0, 1/2).

    Returns:
        [P] nats; may be negative.

    Raises:
        ShapeError: shapes do not fit.

    Example:
        >>> rewards = Rewards(torch.tensor([[0.8, 0.0]]))
        >>> robust_logistic(rewards, Target.of(rewards.gap), eps=0.1)
        tensor([0.2711])

    Source: rDPO, arXiv 2403.00409, equation 12; `robust` of TRL.
    """
    slack = slack_of(rewards, target)
    # log sigmoid(-z) = log sigmoid(z) - z
    return -logsigmoid(slack) - eps / (1.0 - 2.0 * eps) * slack


@objective(uses={"margin", "scale"}, matches=True)
def squared(rewards: Rewards, target: Target) -> Float[Tensor, " pair"]:
    """The gap is to equal the margin: L = z^2, z = scale*gap - margin.

    Args:
        rewards: [P, 2] logits.
        target: `margin` and `scale`, each [P].

    Returns:
        [P] squared logits.

    Raises:
        ShapeError: shapes do not fit.

    Example:
        >>> rewards = Rewards(torch.tensor([[0.8, 0.0]]))
        >>> squared(rewards, Target.of(rewards.gap, margin=0.5))
        tensor([0.0900])

    Source: IPO, arXiv 2310.12036, equation 17 (with the target `regularised`); RPO-sq, arXiv 2406.11704.
    """
    return slack_of(rewards, target) ** 2


@objective(uses={"margin", "scale"}, matches=True)
def kl_backward(rewards: Rewards, target: Target) -> Float[Tensor, " pair"]:
    """KL from the target's probability to the model's: L = KL(Bern(sigmoid(margin)) || Bern(sigmoid(scale*gap))).

    Cross-entropy with the soft label sigmoid(margin), less its entropy: the gradient is MMPO's.

    Args:
        rewards: [P, 2] logits.
        target: `margin` and `scale`, each [P].

    Returns:
        [P] nats, 0 where scale*gap = margin.

    Raises:
        ShapeError: shapes do not fit.

    Example:
        >>> rewards = Rewards(torch.tensor([[2.0, 0.0]]))
        >>> kl_backward(rewards, Target.of(rewards.gap, margin=0.0))
        tensor([0.4338])

    Source: RPO-bwd-kl, code NVIDIA/NeMo-Aligner at af2b3bd.
    """
    return _bernoulli_kl(target.margin, target.scale * rewards.gap)


@objective(uses={"margin", "scale"}, matches=True)
def kl_forward(rewards: Rewards, target: Target) -> Float[Tensor, " pair"]:
    """KL from the model's probability to the target's: L = KL(Bern(sigmoid(scale*gap)) || Bern(sigmoid(margin))).

    Not convex: far from its margin the gradient fades, where that of `kl_backward` does not.

    Args:
        rewards: [P, 2] logits.
        target: `margin` and `scale`, each [P].

    Returns:
        [P] nats, 0 where scale*gap = margin.

    Raises:
        ShapeError: shapes do not fit.

    Example:
        >>> rewards = Rewards(torch.tensor([[2.0, 0.0]]))
        >>> kl_forward(rewards, Target.of(rewards.gap, margin=0.0))
        tensor([0.3278])

    Source: RPO-fwd-kl, code NVIDIA/NeMo-Aligner at af2b3bd.
    """
    return _bernoulli_kl(target.scale * rewards.gap, target.margin)


def _bernoulli_kl(of: Tensor, to: Tensor) -> Tensor:
    """KL(Bern(sigmoid(of)) || Bern(sigmoid(to))) from logits."""
    chosen = torch.sigmoid(of) * (logsigmoid(of) - logsigmoid(to))
    return chosen + torch.sigmoid(-of) * (logsigmoid(-of) - logsigmoid(-to))


@objective(uses={"margin", "scale"}, smooth=False)
def hinge(rewards: Rewards, target: Target) -> Float[Tensor, " pair"]:
    """What is missing to the margin: L = max(0, margin - scale*gap). A pair beyond its margin gives no gradient.

    Args:
        rewards: [P, 2] logits.
        target: `margin` and `scale`, each [P].

    Returns:
        [P] logits.

    Raises:
        ShapeError: shapes do not fit.

    Example:
        >>> rewards = Rewards(torch.tensor([[0.8, 0.0], [1.5, 0.0]]))
        >>> hinge(rewards, Target.of(rewards.gap, margin=1.0))
        tensor([0.2000, 0.0000])

    Source: RePO, arXiv 2503.07426 (gap a token); RSO, arXiv 2309.06657, equation 10; SLiC-HF, arXiv 2305.10425.
    """
    return torch.relu(-slack_of(rewards, target))


@objective(uses={"margin", "scale"}, smooth=False)
def clipped_logistic(rewards: Rewards, target: Target) -> Float[Tensor, " pair"]:
    """Logistic up to the margin, flat beyond it: L = log(1 + exp(max(0, margin - scale*gap))), at least log 2.

    Args:
        rewards: [P, 2] logits.
        target: `margin` and `scale`, each [P].

    Returns:
        [P] nats.

    Raises:
        ShapeError: shapes do not fit.

    Example:
        >>> rewards = Rewards(torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
        >>> clipped_logistic(rewards, Target.of(rewards.gap, margin=1.0))
        tensor([1.3133, 0.6931])

    Source: RePO++, arXiv 2503.07426. Its equation 12 was not readable; the form is reconstructed from its instance on
    DPO (table 7) and its stated gradient. It is not in the released code.
    """
    return softplus(torch.relu(-slack_of(rewards, target)))


@objective(uses={"margin", "scale"}, smooth=False)
def focal(rewards: Rewards, target: Target, *, gamma: float) -> Float[Tensor, " pair"]:
    """Pairs that are already right count less: L = -(1 - 2 max(0, sigmoid(z) - 1/2))^gamma * log sigmoid(z).

    Args:
        rewards: [P, 2] logits.
        target: `margin` and `scale`, each [P].
        gamma: how fast a right pair fades; 0: plain Bradley-Terry.

    Returns:
        [P] nats.

    Raises:
        ShapeError: shapes do not fit.

    Example:
        >>> rewards = Rewards(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        >>> focal(rewards, Target.of(rewards.gap), gamma=2.0)
        tensor([0.0906, 1.3133])

    Source: InternLM2, arXiv 2403.17297, section 4.3.1; code InternLM/xtuner, `ranking_loss`. The factor carries its
    gradient.
    """
    slack = slack_of(rewards, target)
    # 1 - 2 (sigmoid(z) - 1/2) = 2 sigmoid(-z); in logs, which keeps its digits where z is large
    log_fade = math.log(2.0) + logsigmoid(-slack.clamp(min=0.0))
    return -torch.exp(gamma * log_fade) * logsigmoid(slack)


def slack_of(rewards: Rewards, target: Target) -> Float[Tensor, " pair"]:
    """[P] logits: scale*gap - margin.

    Example:
        >>> rewards = Rewards(torch.tensor([[2.0, 0.5]]))
        >>> slack_of(rewards, Target.of(rewards.gap, margin=1.0))
        tensor([0.5000])
    """
    return target.scale * rewards.gap - target.margin


@objective(per="response", asks="logp", finite_to=1e30, normaliser="token")
def nll(rewards: Rewards, target: Target | None = None) -> Float[Tensor, " response"]:
    """Negative log-likelihood of each response: L = -r, with r = log pi(y | x).

    Args:
        rewards: [R] nats, summed over response tokens.
        target: not used.

    Returns:
        [R] nats; the shell divides the sum by the number of response tokens.

    Raises:
        ShapeError: rewards are not [response].

    Example:
        >>> nll(Rewards(torch.tensor([-3.0])))
        tensor([3.])

    Source: maximum likelihood.
    """
    return -rewards.value
