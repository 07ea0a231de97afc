"""Dual-margin selection, DM-ADD and DM-MUL, later named BeeS (Deng et al., NeurIPS 2025, arXiv 2502.14560).

    m_ex = r(chosen) - r(rejected)                                         signed, an external reward model
    m_im = [logp - ref_logp](chosen) - [logp - ref_logp](rejected)         signed, nats; a small tuned policy, its SFT
    DM-ADD   s = m_ex + m_im
    DM-MUL   s = P_ex P_im / (P_ex P_im + (1 - P_ex)(1 - P_im)),   P(m) = (clip(m, M1, M2) - M1) / (M2 - M1)

M1 = -2 for both; M2 of each margin scans down from its largest value as long as fewer than 30 margins are in
[M2, max], or fewer than max - M2 are. The neutral margin is (M1 + M2) / 2, not 0. A margin at or below M1 gives 0.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from marginkit.data.candidates import Array, Candidates, Scored
from marginkit.data.margins import implicit_margin
from marginkit.errors import BadInput

LOW = -2.0
FEW = 30


def upper_bound(margins: Array) -> float:
    """M2: the smallest of the margins, scanning down from the largest, down to which one of two conditions holds.

    (1) fewer than 30 margins are in [M2, max]; (2) fewer than max - M2 are. On which grid the paper scans is not said;
    here M2 is always one of the margins.

    Args:
        margins: [P] finite.

    Raises:
        BadInput: fewer than 30 margins: the rule says nothing then.

    Example:
        >>> upper_bound(np.arange(100.0))
        71.0
    """
    if len(margins) < FEW:
        raise BadInput(f"M2 needs {FEW} margins or more, got {len(margins)}; set high_ex and high_im")
    falling = -np.sort(-margins)
    inside = np.searchsorted(-falling, -falling, side="right")  # margins at or above each, equal ones included
    holds = (inside < FEW) | (inside < falling[0] - falling)
    first_miss = int(np.argmin(holds)) if not holds.all() else len(falling)
    return float(falling[first_miss - 1]) if first_miss else float(falling[0])


def margin_prob(margins: Array, low: float, high: float) -> Array:
    """P(m) = (clip(m, M1, M2) - M1) / (M2 - M1).

    Raises:
        BadInput: M2 is not above M1.

    Example:
        >>> margin_prob(np.array([-5.0, 1.0, 9.0]), -2.0, 4.0).tolist()
        [0.0, 0.5, 1.0]
    """
    if not (math.isfinite(low) and math.isfinite(high) and high > low):
        raise BadInput(
            f"dual margin: M2={high:g} must be above M1={low:g}; set low_* and high_* to the unit of the margin"
        )
    return np.asarray((np.clip(margins, low, high) - low) / (high - low))


def dual_mul(first: Array, second: Array) -> Array:
    """The score s = P Q / (P Q + (1 - P)(1 - Q)): a sum of logits; the conflict of 0 with 1 is 0, low if either is low.

    Example:
        >>> dual_mul(np.array([0.5, 0.5, 0.0]), np.array([0.5, 0.9, 1.0])).round(3).tolist()
        [0.5, 0.9, 0.0]
    """
    both, neither = first * second, (1 - first) * (1 - second)
    total = both + neither
    return np.divide(both, total, out=np.where(np.isnan(total), np.nan, 0.0), where=total > 0)


def by_sum(candidates: Candidates) -> Scored:
    """Select by DM-ADD.

    Raises:
        BadInput: log-probabilities of the two policies are missing, or equal.
    """
    m_ex, m_im = candidates.explicit, implicit_margin(candidates, "reference", "dual_add")
    return Scored(m_ex + m_im, {}, _facts(candidates, m_ex, m_im))


def by_product(
    candidates: Candidates,
    *,
    low_ex: float = LOW,
    low_im: float = LOW,
    high_ex: float | None = None,
    high_im: float | None = None,
) -> Scored:
    """Select by DM-MUL; equal scores, of which there are many at 0 and 1, are ordered by DM-ADD.

    Args:
        candidates: the pairs.
        low_ex: M1 of the explicit margin, in its unit; -2 is for a reward model whose scores span tens.
        low_im: M1 of the implicit margin, nats.
        high_ex: M2; default by the rule, see `upper_bound`.
        high_im: M2 likewise.

    Raises:
        BadInput: as `by_sum`; too few pairs for the rule; M2 not above M1.
    """
    m_ex, m_im = candidates.explicit, implicit_margin(candidates, "reference", "dual_mul")
    there = np.isfinite(m_ex) & np.isfinite(m_im)
    if not there.any():
        raise BadInput("dual_mul: no pair has both margins")
    top_ex = upper_bound(m_ex[there]) if high_ex is None else high_ex
    top_im = upper_bound(m_im[there]) if high_im is None else high_im
    score = np.full(len(candidates), np.nan)
    score[there] = dual_mul(margin_prob(m_ex[there], low_ex, top_ex), margin_prob(m_im[there], low_im, top_im))
    facts = _facts(candidates, m_ex, m_im) | {
        "bounds_explicit": [low_ex, top_ex],
        "bounds_implicit": [low_im, top_im],
        "share_at_0": float((score[there] == 0).mean()),
        "share_at_1": float((score[there] == 1).mean()),
    }
    return Scored(score, {}, facts, second=m_ex + m_im)


def _facts(candidates: Candidates, m_ex: Array, m_im: Array) -> dict[str, Any]:
    there = np.isfinite(m_ex) & np.isfinite(m_im)
    together = float(np.corrcoef(m_ex[there], m_im[there])[0, 1]) if there.sum() > 2 and m_ex[there].std() > 0 else None
    return {
        "margin": candidates.explicit_by,
        "mean_explicit": float(m_ex[there].mean()) if there.any() else None,
        "mean_implicit": float(m_im[there].mean()) if there.any() else None,
        "correlation_of_the_margins": together,
    }
