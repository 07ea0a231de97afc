"""Rewards: what the model says of a response, in logits. They act on each response alone."""

from marginkit.core.parts import reward
from marginkit.core.tensors import PairScores, Rewards, SequenceScores


@reward(needs={"logp"})
def logp(scores: SequenceScores | PairScores) -> Rewards:
    """The log-probability of the response itself: r = log pi(y | x).

    Args:
        scores: `logp` in nats, summed over response tokens.

    Returns:
        Rewards of the shape of `logp`.

    Raises:
        BadInput: `logp` is missing.

    Example:
        >>> import torch
        >>> logp(SequenceScores(logp=torch.tensor([-3.0, -5.0]))).value
        tensor([-3., -5.])

    Source: maximum likelihood; the reward of SFT, SLiC-HF and CPO.
    """
    assert scores.logp is not None
    return Rewards(scores.logp)


@reward(needs={"logp", "ref_logp"})
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
