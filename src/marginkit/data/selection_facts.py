"""What a selection did: quantiles of the scores, lengths before and after, and two selections side by side."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from marginkit.data.candidates import Array, Candidates, Mask, Scored
from marginkit.data.grades import pair_evidence
from marginkit.groups import Groups
from marginkit.records import Group

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def facts_of(candidates: Candidates, scored: Scored, kept: Mask, wanted: int) -> dict[str, Any]:
    """Facts for the manifest: what was asked, what was kept, and whether the score follows the length.

    Args:
        candidates: the pairs.
        scored: their scores.
        kept: [P].
        wanted: how many were asked for.
    """
    mean_chars = (candidates.chars[candidates.chosen] + candidates.chars[candidates.rejected]) / 2
    longer = candidates.gap(candidates.chars)
    there = np.isfinite(scored.score)

    def side(mask: Mask) -> dict[str, Any]:
        if not mask.any():
            return {"pairs": 0}
        gap = candidates.explicit[mask]
        gap = gap[np.isfinite(gap)]
        return {
            "pairs": int(mask.sum()),
            "mean_chars": float(mean_chars[mask].mean()),
            "mean_chars_chosen_minus_rejected": float(longer[mask].mean()),
            "mean_explicit_margin": float(gap.mean()) if len(gap) else None,
            "ties": int(candidates.tie[mask].sum()),
        }

    return {
        "wanted": wanted,
        "score_quantiles": _quantiles(scored.score[there]),
        "score_quantiles_kept": _quantiles(scored.score[kept]),
        "rank_correlation_with_length": _rank_correlation(scored.score[there], mean_chars[there]),
        "rank_correlation_with_length_difference": _rank_correlation(scored.score[there], longer[there]),
        "candidates": side(np.ones(len(kept), dtype=np.bool_)),
        "kept": side(kept),
        "signals": dict(candidates.signals.facts),
        "method": dict(scored.facts),
    }


def _quantiles(score: Array) -> dict[str, float] | None:
    if not len(score):
        return None
    return {f"{at:g}": float(value) for at, value in zip(QUANTILES, np.quantile(score, QUANTILES), strict=True)}


def _rank_correlation(first: Array, second: Array) -> float | None:
    """Spearman's; None where it is not defined."""
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    from scipy.stats import rankdata  # imports slowly

    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])


def compare_selections(first: Groups, second: Groups) -> dict[str, Any]:
    """Two selections side by side: how many pairs they share, and what their pairs are like.

    A pair is the same if group id, chosen and rejected text are.

    Args:
        first: groups with pairs.
        second: others.

    Returns:
        `shared` (pairs in both), `turned` (in both, but the other way round), `jaccard`, `share_of_first`,
        `share_of_second`, and for each the `pairs`, `groups`, `mean_chars`, `mean_chars_chosen_minus_rejected`,
        `mean_grade_gap`, `sources` and `models_chosen`.

    Example:
        >>> from marginkit.records import Pair, Response
        >>> one = Group("a", "?", (Response("x", grade=2.0), Response("y", grade=1.0)), pairs=(Pair(0, 1),))
        >>> found = compare_selections(Groups.from_iterable([one]), Groups.from_iterable([one]))
        >>> found["shared"], found["jaccard"], found["first"]["mean_grade_gap"]
        (1, 1.0, 1.0)
    """
    (a, told_a), (b, told_b) = _described(first), _described(second)
    shared = len(a & b)
    turned = len({(group, rejected, chosen) for group, chosen, rejected in a} & b)
    union = len(a | b)
    return {
        "shared": shared,
        "turned": turned,
        "jaccard": shared / union if union else None,
        "share_of_first": shared / len(a) if a else None,
        "share_of_second": shared / len(b) if b else None,
        "first": told_a,
        "second": told_b,
    }


def _described(groups: Iterable[Group]) -> tuple[set[tuple[str, bytes, bytes]], dict[str, Any]]:
    keys: set[tuple[str, bytes, bytes]] = set()
    chars, longer, gaps = [], [], []
    sources: Counter[str] = Counter()
    models: Counter[str] = Counter()
    count = total = 0
    for group in groups:
        count += 1
        for pair in group.pairs:
            chosen, rejected = group.responses[pair.chosen], group.responses[pair.rejected]
            keys.add((group.id, _hash(chosen.text), _hash(rejected.text)))
            chars.append((len(chosen.text) + len(rejected.text)) / 2)
            longer.append(len(chosen.text) - len(rejected.text))
            gap = pair_evidence(group, pair).grade_gap
            if gap is not None:
                gaps.append(gap)
            sources[str(group.source)] += 1
            models[str(chosen.model)] += 1
            total += 1
    told = {
        "groups": count,
        "pairs": total,
        "mean_chars": float(np.mean(chars)) if chars else None,
        "mean_chars_chosen_minus_rejected": float(np.mean(longer)) if longer else None,
        "mean_grade_gap": float(np.mean(gaps)) if gaps else None,
        "sources": dict(sources.most_common()),
        "models_chosen": dict(models.most_common()),
    }
    return keys, told


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
