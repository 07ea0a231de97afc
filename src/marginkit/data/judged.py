"""A judge's probabilities as logits: clipped, read from AlpacaEval's scale, freed of a liking for one place."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import logit

from marginkit.errors import BadInput

Array = npt.NDArray[np.float64]

CLIP = 1e-5


def clipped_logit(prob: npt.ArrayLike, *, clip: float = CLIP) -> Array:
    """log(p / (1 - p)) of p moved into [clip, 1 - clip]; NaN stays NaN.

    A judge whose other token was not among the top ones gives exactly 0 or 1; unclipped that is infinite.

    Args:
        prob: in [0, 1].
        clip: > 0 and < 1/2; 1e-5 is 11.5 logits.

    Raises:
        BadInput: a probability outside [0, 1], or a clip outside (0, 1/2).

    Example:
        >>> clipped_logit([0.5, 1.0, 0.0], clip=0.01).round(3)
        array([ 0.   ,  4.595, -4.595])
    """
    p = np.asarray(prob, dtype=float)
    if not 0 < clip < 0.5:
        raise BadInput(f"clip={clip}: give a number between 0 and 1/2, e.g. 1e-5")
    if ((p < 0) | (p > 1)).any():
        worst = float(p[(p < 0) | (p > 1)][0])
        raise BadInput(
            f"a judge's probability is {worst:g}, outside [0, 1]; is it a preference in 1..2, a percentage, "
            "or a rating (how=ratings)?"
        )
    return np.asarray(logit(np.clip(p, clip, 1 - clip)))


def preference_prob(preference: npt.ArrayLike) -> Array:
    """AlpacaEval's preference as P(the second output is better) = preference - 1.

    The weighted annotations lie in [1, 2]; the first version's are 1 or 2, with 0 for a tie. A missing verdict is NaN.

    Args:
        preference: 1 to 2, or 0.

    Raises:
        BadInput: any other number.

    Example:
        >>> preference_prob([1.25, 2.0, 0.0])
        array([0.25, 1.  , 0.5 ])
    """
    given = np.asarray(preference, dtype=float)
    tie = given == 0
    if (~tie & ((given < 1) | (given > 2))).any():
        raise BadInput("a preference is neither in [1, 2] nor 0 (a tie): it is not on AlpacaEval's scale")
    return np.asarray(np.where(tie, 0.5, given - 1))


def cancel_position(logit_ab: npt.ArrayLike, logit_ba: npt.ArrayLike) -> tuple[Array, Array]:
    """A gap without the judge's liking for a place, and that liking, from both orders of the same pair.

    m = (logit p_AB - logit p_BA) / 2 and b = (logit p_AB + logit p_BA) / 2, where p_AB is P(the one shown first is
    better) with A first and p_BA the same with B first. For p_AB = sigmoid(m + b) and p_BA = sigmoid(-m + b), m is
    exact. Ours; the mean of the two probabilities would keep a part of b.

    Args:
        logit_ab: logits, A shown first.
        logit_ba: logits, B shown first.

    Returns:
        The gap of A over B, and the bias toward the first place; logits.

    Example:
        >>> gap, bias = cancel_position([2.0 + 0.5], [-2.0 + 0.5])
        >>> gap.tolist(), bias.tolist()
        ([2.0], [0.5])
    """
    ab, ba = np.asarray(logit_ab, dtype=float), np.asarray(logit_ba, dtype=float)
    return (ab - ba) / 2, (ab + ba) / 2
