"""Alignment potential M_AP (Huang et al., ICML 2025, arXiv 2503.01864), as the authors' code computes it.

    a = max_k r(x, y_k) - min_k r(x, y_k)              explicit margin
    b = |logp(y_w | x) / |y_w| - logp(y_l | x) / |y_l||  implicit margin, current policy, no reference
    score = z(a) - lambda z(b),  z(v) = (v - mean v) / std v, over the whole set of candidates, ddof 0

The ranking does not change under a positive affine map of a or of b: neither beta nor the scale of the rewards matters.
Scores of different sets are not comparable.
"""

from __future__ import annotations

import numpy as np

from marginkit.data.candidates import Array, Candidates, Scored
from marginkit.data.margins import implicit_margin
from marginkit.errors import BadInput


def alignment_potential(explicit: Array, implicit: Array, weight: float = 1.0) -> Array:
    """M_AP = z(explicit) - weight * z(implicit).

    Args:
        explicit: [P] how far apart the rewards put the two.
        implicit: [P] how far apart the policy puts them already.
        weight: lambda; 0 is explicit alone, a large one the smallest implicit margins.

    Returns:
        [P], no unit.

    Raises:
        BadInput: a value is not finite (one would make every score NaN), or a margin is the same for all pairs.

    Example:
        >>> alignment_potential(np.array([1.0, 2.0, 3.0]), np.array([0.0, 3.0, 0.0])).round(3).tolist()
        [-0.518, -1.414, 1.932]
    """
    score = _standard(explicit, "explicit")
    return score - weight * _standard(implicit, "implicit") if weight else score


def _standard(margin: Array, name: str) -> Array:
    bad = int((~np.isfinite(margin)).sum())
    if bad:
        raise BadInput(f"alignment: the {name} margin of {bad} pairs is not a finite number; leave them out first")
    spread = float(margin.std())
    if not spread > 1e-12 * max(1.0, float(np.abs(margin).max(initial=0.0))):
        raise BadInput(f"alignment: the {name} margin is the same for all {len(margin)} pairs and ranks nothing")
    return np.asarray((margin - margin.mean()) / spread)


def by_potential(
    candidates: Candidates,
    *,
    weight: float = 1.0,
    explicit: str = "spread",
    form: str = "per_token",
    signed: bool = False,
) -> Scored:
    """Select by M_AP.

    Args:
        candidates: the pairs.
        weight: lambda.
        explicit: spread (as released: best minus worst reward of the prompt; refused where a pair is not best and
            worst) or pair (size of the pair's own margin).
        form: of the implicit margin: per_token (as released) or reference, see `margins`.
        signed: the implicit margin as it is, not its size: prefers pairs that the policy ranks the wrong way round.

    Raises:
        BadInput: margins that rank nothing, log-probabilities missing, pairs that are not best and worst.
    """
    b = implicit_margin(candidates, form, "alignment")
    b = b if signed else np.abs(b)
    if explicit == "pair":
        a = np.abs(candidates.explicit)
    elif explicit == "spread":
        a = _spread(candidates)
    else:
        raise BadInput(f"alignment: explicit={explicit}: spread or pair")
    there = np.isfinite(a) & np.isfinite(b)
    if not there.any():
        raise BadInput("alignment: no pair has both an explicit and an implicit margin")
    score = np.full(len(candidates), np.nan)
    score[there] = alignment_potential(a[there], b[there], weight)
    together = float(np.corrcoef(a[there], b[there])[0, 1]) if there.sum() > 2 else None
    means = {"mean_explicit": float(a[there].mean()), "mean_implicit": float(b[there].mean())}
    return Scored(score, {}, means | {"correlation_of_the_margins": together, "margin": candidates.explicit_by})


def _spread(candidates: Candidates) -> Array:
    """Best minus worst reward of the prompt of each pair, which the pair has to be."""
    margin = np.abs(candidates.explicit)
    rewards = candidates.signals.rewards[0]
    if np.isnan(rewards).all():  # the data speaks of its pairs alone
        return margin
    reward = candidates.signals.reward
    high = np.fmax.reduceat(reward, candidates.signals.starts[:-1])[candidates.group]
    low = np.fmin.reduceat(reward, candidates.signals.starts[:-1])[candidates.group]
    with np.errstate(invalid="ignore"):
        other = (reward[candidates.chosen] != high) | (reward[candidates.rejected] != low)
    other &= np.isfinite(reward[candidates.chosen]) & np.isfinite(reward[candidates.rejected])
    if other.any():
        raise BadInput(
            f"alignment: {int(other.sum())} of {len(candidates)} pairs are not the best and the worst of their prompt, "
            "as released; pair by best_worst, or take the margin of the pair itself with explicit=pair"
        )
    return np.where(np.isfinite(margin), high - low, np.nan)
