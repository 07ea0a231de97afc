"""IFD, instruction-following difficulty (Li et al., Cherry_LLM), and its difference between the two of a pair.

    IFD(x, y) = mean NLL(y | x) / mean NLL(y)

0: the prompt says all of the response; 1: it says nothing. Above 1 the prompt misleads and the response is left out.
"""

from __future__ import annotations

import numpy as np

from marginkit.data.candidates import Array, Candidates, Scored
from marginkit.data.margins import by_region
from marginkit.errors import BadInput


def ifd(logp: Array, bare_logp: Array) -> Array:
    """IFD of responses; the number of tokens is the same with and without the prompt and cancels.

    Args:
        logp: [R] nats given the prompt, summed.
        bare_logp: [R] nats without it.

    Returns:
        [R], NaN where the response without its prompt is certain.

    Example:
        >>> ifd(np.array([-20.0, -50.0]), np.array([-40.0, -40.0])).tolist()
        [0.5, 1.25]
    """
    return np.asarray(np.divide(logp, bare_logp, out=np.full(len(logp), np.nan), where=bare_logp < 0))


def by_ifd(candidates: Candidates, *, region: str = "top", tau: float = 0.1, max_ratio: float = 1.0) -> Scored:
    """Select by IFD(chosen) - IFD(rejected); pairs with a ratio above 1 are left out.

    Args:
        candidates: the pairs.
        region: top, bottom, or mid: within [-tau, tau], the "low gap" of Deng et al.
        tau: half the width of the middle.
        max_ratio: the largest IFD of either response.

    Raises:
        BadInput: log-probabilities are missing, or max_ratio is not above 0.
    """
    if not max_ratio > 0:
        raise BadInput(f"ifd: max_ratio={max_ratio}: must be above 0")
    each = ifd(candidates.need("logp", "ifd"), candidates.need("bare_logp", "ifd"))
    with np.errstate(invalid="ignore"):
        misled = (each[candidates.chosen] > max_ratio) | (each[candidates.rejected] > max_ratio)
    margin = np.where(misled, np.nan, candidates.gap(each))
    scored = by_region(candidates, margin, region=region, tau=tau, outliers=0.0, facts={"margin": "IFD"})
    facts = {**scored.facts, "mean_ifd": float(np.nanmean(each)) if np.isfinite(each).any() else None}
    return Scored(scored.score, {"pairs with an IFD above max_ratio": misled, **scored.left_out}, facts)
