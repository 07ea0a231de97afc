"""Rewards: what the model says of a response, in logits. They act on each response alone."""

import torch
from torch import Tensor

from marginkit.core.parts import reward
from marginkit.core.tensors import PairScores, Rewards, SequenceScores


def tokens(scores: SequenceScores | PairScores) -> Tensor:
    """Response tokens, at least 1: an empty response has a mean log-probability of 0, not NaN.

    Example:
        >>> tokens(SequenceScores(length=torch.tensor([0.0, 7.0])))
        tensor([1., 7.])
    """
    assert scores.length is not None
    return scores.length.clamp(min=1.0)


@reward(needs={"logp"})
def logp(scores: SequenceScores | PairScores, *, beta: float = 1.0) -> Rewards:
    """The log-probability of the response itself: r = beta * log pi(y | x).

    Args:
        scores: `logp` in nats, summed over response tokens.
        beta: logits per nat.

    Returns:
        Rewards of the shape of `logp`.

    Raises:
        BadInput: `logp` is missing.

    Example:
        >>> import torch
        >>> logp(SequenceScores(logp=torch.tensor([-3.0, -5.0]))).value
        tensor([-3., -5.])

    Source: maximum likelihood; the reward of SFT and SLiC-HF (beta 1) and of CPO, arXiv 2401.08417.
    """
    assert scores.logp is not None
    return Rewards(scores.logp if beta == 1.0 else beta * scores.logp)


@reward(needs={"logp", "ref_logp"}, anchored=True)
def implicit(scores: SequenceScores | PairScores, *, beta: float) -> Rewards:
    """The reward a policy implies: r = beta * (log pi(y | x) - log pi_ref(y | x)).

    Args:
        scores: `logp` and `ref_logp` in nats, summed over response tokens.
        beta: logits per nat; the strength of the pull toward the reference.

    Returns:
        Rewards of the shape of `logp`.

    Raises:
        BadInput: `logp` or `ref_logp` is missing.

    Example:
        >>> import torch
        >>> implicit(SequenceScores(logp=torch.tensor([-40.0]), ref_logp=torch.tensor([-42.0])), beta=0.1).value
        tensor([0.2000])

    Source: DPO, arXiv 2305.18290, equation 5 (the term in Z(x) cancels in every gap).
    """
    assert scores.logp is not None
    assert scores.ref_logp is not None
    return Rewards(beta * (scores.logp - scores.ref_logp))


@reward(needs={"logp", "ref_logp", "length"}, anchored=True)
def implicit_mean(scores: SequenceScores | PairScores, *, beta: float) -> Rewards:
    """The implied reward a token: r = beta * (log pi(y | x) - log pi_ref(y | x)) / |y|.

    Args:
        scores: `logp` and `ref_logp` in nats, summed; `length` in response tokens (counted as 1 where it is 0).
        beta: logits per nat a token.

    Returns:
        Rewards of the shape of `logp`.

    Raises:
        BadInput: a field is missing.

    Example:
        >>> import torch
        >>> n = torch.tensor([20.0])
        >>> implicit_mean(SequenceScores(logp=-2 * n, ref_logp=-2.1 * n, length=n), beta=2.0).value
        tensor([0.2000])

    Source: `ipo` and `sigmoid_norm` of TRL 1.16, which says that IPO's authors confirm the mean over tokens.
    """
    assert scores.logp is not None
    assert scores.ref_logp is not None
    return Rewards(beta * (scores.logp - scores.ref_logp) / tokens(scores))


@reward(needs={"logp", "length"})
def per_token(scores: SequenceScores | PairScores, *, beta: float) -> Rewards:
    """The mean log-probability of a token, without a reference: r = beta * log pi(y | x) / |y|.

    Args:
        scores: `logp` in nats, summed; `length` in response tokens (counted as 1 where it is 0).
        beta: logits per nat a token.

    Returns:
        Rewards of the shape of `logp`.

    Raises:
        BadInput: `logp` or `length` is missing.

    Example:
        >>> import torch
        >>> per_token(SequenceScores(logp=torch.tensor([-40.0]), length=torch.tensor([20.0])), beta=2.5).value
        tensor([-5.])

    Source: SimPO, arXiv 2405.14734, equation 4; code princeton-nlp/SimPO at 1b3e8f3.
    Deviation: there an empty response gives 0 / 0.
    """
    assert scores.logp is not None
    return Rewards(beta * scores.logp / tokens(scores))


@reward(needs={"logp", "length"})
def log_odds(scores: SequenceScores | PairScores) -> Rewards:
    """The log-odds of a response's mean token: r = m - log(1 - e^m), m = log pi(y | x) / |y|.

    m is kept below 0 by the smallest step of its type: a certain response has long, not infinite odds.

    Args:
        scores: `logp` in nats, summed; `length` in response tokens (counted as 1 where it is 0).

    Returns:
        Rewards of the shape of `logp`.

    Raises:
        BadInput: `logp` or `length` is missing.

    Example:
        >>> import torch
        >>> log_odds(SequenceScores(logp=torch.tensor([-40.0]), length=torch.tensor([20.0]))).value
        tensor([-1.8546])

    Source: ORPO, arXiv 2403.07691, equation 4; code xfactlab/orpo at 208d2d6.
    Deviation: there the odds of a certain response are infinite.
    """
    assert scores.logp is not None
    mean = scores.logp / tokens(scores)
    mean = mean.clamp(max=-torch.finfo(mean.dtype).eps)
    near = mean > -0.6931471805599453  # log(1 - e^m): by expm1 near 0, by log1p far from it
    one_minus = torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, mean, torch.full_like(mean, -0.5)))),
        torch.log1p(-torch.exp(torch.where(near, torch.full_like(mean, -1.0), mean))),
    )
    return Rewards(mean - one_minus)


@reward(needs={"head"})
def head(scores: SequenceScores | PairScores) -> Rewards:
    """The scalar output of a reward model: r = head(x, y).

    Args:
        scores: `head` in logits.

    Returns:
        Rewards of the shape of `head`.

    Raises:
        BadInput: `head` is missing.

    Example:
        >>> import torch
        >>> head(SequenceScores(head=torch.tensor([1.5, -0.5]))).value
        tensor([ 1.5000, -0.5000])

    Source: Bradley-Terry reward models, arXiv 2203.02155, equation 1.
    """
    assert scores.head is not None
    return Rewards(scores.head)
