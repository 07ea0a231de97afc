"""Objectives: how the shortfall of a pair becomes a loss. Unreduced; the shell weights and averages."""

import torch
from jaxtyping import Float
from torch import Tensor

from marginkit.core.parts import objective
from marginkit.core.tensors import Rewards, Target


@objective(per="pair", smooth=True, shift_invariant=True, finite_to=1e4)
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
    slack = target.scale * rewards.gap - target.margin
    return -torch.nn.functional.logsigmoid(slack) + (1.0 - target.prob) * slack


@objective(per="response", smooth=True, shift_invariant=False, finite_to=1e30, uses_prob=False, normaliser="token")
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
