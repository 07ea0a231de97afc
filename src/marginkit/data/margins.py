"""Selection by one margin: explicit (what the rewards say), implicit (what the policy says), the top, bottom or middle.

    explicit          r(chosen) - r(rejected)
    implicit, per_token   logp(chosen) / |chosen| - logp(rejected) / |rejected|            nats a token, no reference
    implicit, reference   [logp - ref_logp](chosen) - [logp - ref_logp](rejected)          nats, without beta

The two implicit margins are not equivalent. At the start of DPO the second is 0 for every pair and ranks nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from marginkit.data.candidates import Array, Candidates, Mask, Scored
from marginkit.errors import BadInput

REGIONS = ("top", "bottom", "mid")


def by_explicit(
    candidates: Candidates, *, region: str = "top", signed: bool = True, tau: float = 1.0, outliers: float = 0.0
) -> Scored:
    """The largest, smallest or middling explicit margins (TOP, BOT and MID of Deng et al., arXiv 2502.14560).

    Args:
        candidates: the pairs.
        region: top; bottom; mid (a random choice among margins within [-tau, tau]).
        signed: of the margin as it is, else of its size.
        tau: half the width of the middle, in the unit of the margin.
        outliers: share of the pairs that is first cut off at either end; the paper cuts, but not where.
    """
    margin = candidates.explicit if signed else np.abs(candidates.explicit)
    facts = {"margin": f"explicit ({candidates.explicit_by})", "signed": signed}
    return by_region(candidates, margin, region=region, tau=tau, outliers=outliers, facts=facts)


def by_implicit(
    candidates: Candidates,
    *,
    region: str = "top",
    form: str = "per_token",
    signed: bool = True,
    tau: float = 1.0,
    outliers: float = 0.0,
) -> Scored:
    """The largest, smallest or middling implicit margins; `region=bottom signed=false` is M_AP's baseline.

    Args:
        candidates: the pairs.
        region: as in `by_explicit`.
        form: per_token or reference, see the module.
        signed: as in `by_explicit`.
        tau: as in `by_explicit`; nats a token, or nats.
        outliers: as in `by_explicit`.
    """
    margin = implicit_margin(candidates, form, "implicit")
    margin = margin if signed else np.abs(margin)
    facts = {"margin": f"implicit ({form})", "signed": signed}
    return by_region(candidates, margin, region=region, tau=tau, outliers=outliers, facts=facts)


def by_threshold(candidates: Candidates, *, min_gap: float = 0.0) -> Scored:
    """Pairs whose explicit margin is above a threshold, the largest first (RS-DPO).

    Args:
        candidates: the pairs.
        min_gap: in the unit of the margin; the gap must be above it.
    """
    margin = candidates.explicit
    with np.errstate(invalid="ignore"):
        small = margin <= min_gap
    return Scored(
        _without(margin, small), {"pairs with a gap within min_gap": small}, {"margin": candidates.explicit_by}
    )


def by_chance(candidates: Candidates) -> Scored:
    """A random choice without replacement."""
    return Scored(_chance(candidates), {}, {})


def implicit_margin(candidates: Candidates, form: str, method: str) -> Array:
    """[P] the signed implicit margin, see the module.

    Raises:
        BadInput: an unknown form, log-probabilities missing, or a policy that equals its reference.
    """
    if form == "per_token":
        return candidates.gap(candidates.need("logp", method) / candidates.need("length", method))
    if form != "reference":
        raise BadInput(f"{method}: form={form}: per_token or reference")
    logp = candidates.need("logp", method)
    ratio = logp - candidates.need("ref_logp", method)
    margin = candidates.gap(ratio)
    if (np.abs(margin[np.isfinite(margin)]) < 1e-6).all():
        raise BadInput(
            f"{method}: policy and reference give the same log-probabilities, so every implicit margin is 0 and ranks "
            "nothing; name a tuned policy, or use how=implicit or alignment with form=per_token"
        )
    return margin


def by_region(
    candidates: Candidates, margin: Array, *, region: str, tau: float, outliers: float, facts: dict[str, Any]
) -> Scored:
    """The top, bottom or middle of any margin.

    Args:
        candidates: the pairs.
        margin: [P], NaN where absent.
        region: top, bottom or mid.
        tau: half the width of the middle.
        outliers: share first cut off at either end.
        facts: what the margin is.

    Raises:
        BadInput: an unknown region, or a value out of range.
    """
    if region not in REGIONS:
        raise BadInput(f"region={region}: must be one of {', '.join(REGIONS)}")
    if not tau > 0 or not 0 <= outliers < 0.5:
        raise BadInput(f"tau={tau}, outliers={outliers}: tau is above 0, outliers a share below 0.5")
    left_out: dict[str, Mask] = {}
    there = np.isfinite(margin)
    if outliers and there.any():
        low, high = np.quantile(margin[there], [outliers, 1 - outliers])
        left_out["pairs with an extreme margin"] = there & ((margin < low) | (margin > high))
    if region == "mid":
        inside = there & (np.abs(margin) <= tau)
        cut = left_out.get("pairs with an extreme margin", np.zeros(len(margin), dtype=np.bool_))
        left_out["pairs outside the middle"] = there & ~inside & ~cut
        score = np.where(inside, _chance(candidates), np.nan)
    else:
        score = margin if region == "top" else -margin
    for mask in left_out.values():
        score = _without(score, mask)
    return Scored(score, left_out, facts | {"region": region} | ({"tau": tau} if region == "mid" else {}))


def _without(score: Array, mask: Mask) -> Array:
    return np.where(mask, np.nan, score)


def _chance(candidates: Candidates) -> Array:
    return np.random.default_rng(candidates.seed).random(len(candidates))
