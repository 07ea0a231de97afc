"""Counts of votes as logits: log-odds under a Beta prior, the ratio of up-votes, and how much they can be trusted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from marginkit.errors import BadInput

Array = npt.NDArray[np.float64]
JEFFREYS = (0.5, 0.5)


def vote_log_odds(
    wins: npt.ArrayLike, losses: npt.ArrayLike, ties: npt.ArrayLike = 0.0, *, prior: tuple[float, float] = JEFFREYS
) -> Array:
    """Log-odds of the posterior mean: log((wins + ties/2 + a) / (losses + ties/2 + b)), logits.

    With a = b the answer to no votes is 0; with a = b = 0 it is the logit of the raw share, infinite where all agree.

    Args:
        wins: votes for, >= 0.
        losses: votes against.
        ties: votes for neither; half a vote to each side.
        prior: (a, b) of the Beta prior, counts >= 0; the default is Jeffreys'.

    Raises:
        BadInput: a prior or count below 0.

    Example:
        >>> vote_log_odds([3, 5], [1, 0], prior=(1, 1)).round(4)
        array([0.6931, 1.7918])
    """
    a, b = prior
    for_, against, equal = (np.asarray(count, dtype=float) for count in (wins, losses, ties))
    if a < 0 or b < 0:
        raise BadInput(f"prior=({a:g}, {b:g}): give two counts >= 0, e.g. 0.5,0.5")
    if min(np.min(count, initial=0.0) for count in (for_, against, equal)) < 0:
        raise BadInput("a count of votes is negative: counts are >= 0")
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(for_ + equal / 2 + a) - np.log(against + equal / 2 + b))


def effective_votes(
    wins: npt.ArrayLike, losses: npt.ArrayLike, ties: npt.ArrayLike = 0.0, *, prior: tuple[float, float] = JEFFREYS
) -> Array:
    """How many evenly split votes would know the log-odds as well: 4 / (1/w + 1/l).

    The variance of a log ratio of counts is about 1/w + 1/l, which for w = l = n/2 is 4/n. Ties count half to each
    side and the prior is included, as in `vote_log_odds`.

    Example:
        >>> effective_votes([400, 4], [200, 2], prior=(0, 0)).round(1)
        array([533.3,   5.3])
    """
    for_, against, equal = (np.asarray(count, dtype=float) for count in (wins, losses, ties))
    w, l = for_ + equal / 2 + prior[0], against + equal / 2 + prior[1]  # noqa: E741
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(w + l > 0, 4 * w * l / (w + l), 0.0))
