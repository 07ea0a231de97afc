"""Preference strength of an ensemble of reward models (Secrets of RLHF II, arXiv 2401.06080): flip, soften.

    d_im = r_m(x_i, chosen) - r_m(x_i, rejected),   u_i = mean_m d_im,   s_i = sqrt(mean_m (d_im - u_i)^2)

The lowest fifth by u is turned round, the next fifth gets a soft label. The models should not have seen the labels they
judge: cross-fitted rewards are such.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from marginkit.data.candidates import Array, Candidates, Scored
from marginkit.data.grades import pair_evidence
from marginkit.errors import BadInput
from marginkit.records import Pair


def strength(gaps: Array) -> tuple[Array, Array]:
    """Mean u and standard deviation s over the models, ddof 0.

    Args:
        gaps: [M, P] reward(chosen) - reward(rejected) by each model.

    Returns:
        u and s, [P] each; s is 0 with one model.

    Example:
        >>> u, s = strength(np.array([[1.0, -2.0], [3.0, -2.0]]))
        >>> u.tolist(), s.tolist()
        ([2.0, -2.0], [1.0, 0.0])
    """
    return gaps.mean(axis=0), gaps.std(axis=0)


def in_own_units(gaps: Array) -> Array:
    """Each model's gaps in units of their standard deviation, so that no model outweighs another by its scale.

    The mean is not taken off, as a z-score would: it would turn the label of about half the pairs.

    Args:
        gaps: [M, P].

    Raises:
        BadInput: a model gives every pair the same gap.
    """
    spread = np.nanstd(gaps, axis=1, keepdims=True)
    if not (spread > 0).all():
        raise BadInput(f"ensemble: model {int(np.argmin(spread > 0))} gives every pair the same gap")
    return np.asarray(gaps / spread)


def by_strength(
    candidates: Candidates, *, flip: float = 0.2, soften: float = 0.2, smoothing: float = 0.2, scale: bool = True
) -> Scored:
    """Select by ensemble strength u, after turning and softening.

    The lowest `flip` of the pairs by u, as far as their u is below 0, are turned round: chosen and rejected change
    places, u becomes -u, and -u in the ensemble's own unit is the evidence (`target_gap`), since what the data says of
    the pair spoke for the other order; of its grade gap the size stays, as `strength`. The next `soften` of the pairs
    get prob = 1 - `smoothing`.

    Args:
        candidates: the pairs.
        flip: share of the pairs.
        soften: share of the pairs.
        smoothing: alpha of the soft label; the paper's is not known, this one is ours.
        scale: divide each model's gaps by their standard deviation first.

    Raises:
        BadInput: shares that do not fit, or a model without spread.
    """
    if not (0 <= flip <= 1 and 0 <= soften <= 1 and flip + soften <= 1 and 0 <= smoothing < 0.5):
        raise BadInput(
            f"ensemble: flip={flip}, soften={soften}, smoothing={smoothing}: shares of the pairs that add up to 1 at "
            "most, and smoothing below 0.5"
        )
    if not candidates.signals.external:
        raise BadInput("how=ensemble needs the rewards of models: name each with --reward RUN or its score tables")
    raw = np.array([candidates.gap(reward) for reward in candidates.signals.rewards])
    u, s = strength(in_own_units(raw) if scale else raw)
    own_unit = raw.mean(axis=0)
    order = np.argsort(u, kind="stable")[: int(np.isfinite(u).sum())]  # NaN sorts last
    first, second = (math.floor(share * len(order) + 1e-9) for share in (flip, flip + soften))
    turned, doubtful = order[:first], order[first:second]
    changed: dict[int, Pair] = {}
    for at in turned[u[turned] < 0].tolist():
        pair = candidates.pairs[at]
        gap = abs(float(own_unit[at]))
        said = pair_evidence(candidates.groups[int(candidates.group[at])], pair).grade_gap
        size = None if said is None else abs(said)  # without it, grades would speak for the old order
        changed[at] = Pair(pair.rejected, pair.chosen, strength=size, target_gap=gap, weight=pair.weight)
    flipped = len(changed)
    for at in doubtful.tolist():
        changed[at] = replace(candidates.pairs[at], prob=1 - smoothing, votes=None, target_gap=None)
    facts = {
        "models": len(raw),
        "flipped": flipped,
        "in the lowest share but u >= 0, not flipped": len(turned) - flipped,
        "softened": len(doubtful),
        "share_with_u_below_0": float((u[np.isfinite(u)] < 0).mean()) if len(order) else None,
        "mean_s": float(np.nanmean(s)) if len(order) else None,
    }
    return Scored(_turned(u, list(changed)[:flipped]), {}, facts, changed=changed)


def _turned(u: Array, flipped: list[int]) -> Array:
    signs: npt.NDArray[np.float64] = np.ones(len(u))
    signs[flipped] = -1
    return u * signs
