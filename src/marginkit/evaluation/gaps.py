"""Does the model put far apart what the raters put far apart? Pairs by the size of their grade gap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from marginkit.errors import BadInput
from marginkit.evaluation.bootstrap import Array, Mask
from marginkit.evaluation.calibration import sigmoid
from marginkit.evaluation.pair_columns import PairColumns, read_tables
from marginkit.evaluation.questions import Questions
from marginkit.evaluation.ranks import area_under_curve, rank_correlation
from marginkit.records import Estimate
from marginkit.tables import Scores

FEW_VALUES = 8
"""Different gaps up to which each is a bucket of its own; above, there are five of equal count."""
BUCKETS = 5
ROUNDING = 1e-3
"""Share of the range within which gaps are one value: 1 - 0.6667 and 0.3333 are the same third."""
LEVELS = 50
"""Different values, but for rounding, up to which grades are steps of a scale and no continuum."""
MEASURES = {"grade_gap": "dataset units", "target_gap": "logits"}


@dataclass(frozen=True, slots=True)
class GapBucket:
    """The pairs whose grade gap lies in `(low, high]`, or is `low` but for rounding where the two are equal.

    Args:
        low: lower edge, exclusive; the value itself where the bucket is one value.
        high: upper edge, inclusive.
        n: pairs.
        ties: of them, left out of the agreement.
        agreement: share of pairs whose chosen response has the higher reward.
        gap: the model's mean gap, logits.
        prob: its mean probability that chosen is better: beside the agreement, calibration bucket by bucket.
    """

    low: float
    high: float
    n: int
    ties: int
    agreement: Estimate
    gap: Estimate
    prob: Estimate

    @property
    def name(self) -> str:
        """The bucket in words."""
        return range_name(self.low, self.high)


@dataclass(frozen=True, slots=True)
class GapStudy:
    """Agreement and gaps along the grade gap (or target gap), and how ties are told.

    Args:
        measure: `grade_gap` or `target_gap`.
        unit: dataset units or logits.
        buckets: from the smallest gap to the largest.
        correlation: Spearman's correlation of the model's gap with the measure: is more apart further apart?
        rises: steps from bucket to bucket in which the mean gap rises.
        steps: how many steps there are.
        tie_auc: chance that a pair that is no tie has a larger gap, of either sign, than one that is: 1/2 says that the
            model does not tell ties from others, 1 that all ties have the smaller gaps; None without ties.
        ties: pairs that are ties.
        left_out: pairs without the measure.
    """

    measure: str
    unit: str
    buckets: list[GapBucket]
    correlation: Estimate
    rises: int
    steps: int
    tie_auc: Estimate | None
    ties: int
    left_out: int

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, estimates as they are elsewhere; NaN becomes None."""
        found = {name: getattr(self, name) for name in ("measure", "unit", "rises", "steps", "ties", "left_out")}
        return {
            **found,
            "correlation": self.correlation.to_json(),
            "tie_auc": None if self.tie_auc is None else self.tie_auc.to_json(),
            "buckets": [
                asdict(bucket)
                | {"name": bucket.name}
                | {name: getattr(bucket, name).to_json() for name in ("agreement", "gap", "prob")}
                for bucket in self.buckets
            ],
        }


def by_gap(
    scores: Scores | pa.Table | str | Path,
    *,
    measure: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> GapStudy:
    """Agreement, mean gap and mean probability by bucket of the grade gap; monotonicity; how ties are told.

    A reward that learned *how much* better puts pairs with larger grade gaps further apart, agrees more often on them,
    and gives ties small gaps. Hard labels ask the same gap of every pair.

    Args:
        scores: what `score` gave, its pairs table, or where they were saved.
        measure: `grade_gap` (dataset units) or `target_gap` (logits); whichever there is, grades first, if None.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        The study. Buckets are single values where there are at most 8 of them, else five of equal count.

    Raises:
        BadInput: no such measure, or no pair has it.

    Example:
        >>> table = pa.table({
        ...     "group": ["a", "b", "c", "d"], "cluster": ["a", "b", "c", "d"], "tie": [False, False, False, True],
        ...     "reward_chosen": [2.0, 0.5, -1.0, 0.1], "reward_rejected": [0.0] * 4, "gap": [2.0, 0.5, -1.0, 0.1],
        ...     "label_prob": pa.nulls(4, pa.float64()), "target_gap": pa.nulls(4, pa.float64()),
        ...     "grade_gap": [3.0, 1.0, 1.0, 0.0],
        ... })
        >>> study = by_gap(table)
        >>> [(bucket.name, bucket.n, bucket.gap.value) for bucket in study.buckets]
        [('0', 1, 0.1), ('1', 2, -0.25), ('3', 1, 2.0)]
        >>> study.rises, study.steps, study.tie_auc.value
        (1, 2, 1.0)
    """
    pairs = PairColumns.read(read_tables(scores)[1])
    if measure is not None and measure not in MEASURES:
        raise BadInput(f"measure {measure!r}: must be one of {', '.join(MEASURES)}")
    for name in (measure,) if measure else MEASURES:
        values: Array = getattr(pairs, name)
        here = ~np.isnan(values)
        if here.any():
            break
    else:
        raise BadInput(f"no pair has a {(measure or 'grade gap or target gap').replace('_', ' ')}: score graded data")
    asked = Questions(pairs.cluster, resamples=resamples, seed=seed)
    asked.ask("correlation", rank_correlation(pairs.gap[here], values[here]), here)
    if pairs.tie.any() and not pairs.tie.all():
        asked.ask("ties", area_under_curve(np.abs(pairs.gap), ~pairs.tie), np.ones_like(pairs.tie))
    found = list(buckets(values))
    for number, (_, _, inside) in enumerate(found):
        asked.mean(f"agreement {number}", np.where(inside & ~pairs.tie, pairs.gap > 0, np.nan))
        asked.mean(f"gap {number}", np.where(inside, pairs.gap, np.nan))
        asked.mean(f"prob {number}", np.where(inside, sigmoid(pairs.gap), np.nan))
    answers = asked.answers()
    rows = [
        GapBucket(
            low,
            high,
            int(inside.sum()),
            int((inside & pairs.tie).sum()),
            *(answers[f"{name} {number}"] for name in ("agreement", "gap", "prob")),
        )
        for number, (low, high, inside) in enumerate(found)
    ]
    steps = np.diff([row.gap.value for row in rows])
    return GapStudy(
        measure=name,
        unit=MEASURES[name],
        buckets=rows,
        correlation=answers["correlation"],
        rises=int((steps > 0).sum()),
        steps=len(steps),
        tie_auc=answers.get("ties"),
        ties=int(pairs.tie.sum()),
        left_out=int((~here).sum()),
    )


def buckets(values: Array) -> Iterator[tuple[float, float, Mask]]:
    """`(low, high, mask)` of buckets of `[row]` values, NaN in none: single values where few, else of equal count.

    Example:
        >>> [(low, high, int(inside.sum())) for low, high, inside in buckets(np.array([1.0, 1.0, 2.0, np.nan]))]
        [(1.0, 1.0, 2), (2.0, 2.0, 1)]
        >>> [(low, high, int(inside.sum())) for low, high, inside in buckets(np.arange(20.0))][:2]
        [(0.0, 3.0, 4), (3.0, 7.0, 4)]
        >>> [(low, high, int(inside.sum())) for low, high, inside in buckets(np.array([0.3333, 1 - 0.6667, 1.0]))]
        [(0.3333, 0.3333, 2), (1.0, 1.0, 1)]
    """
    values = _unrounded(values)
    different, counts = np.unique(values[~np.isnan(values)], return_counts=True)
    if len(different) <= FEW_VALUES:
        for value in different:
            yield float(value), float(value), values == value
        return
    upto = np.cumsum(counts)
    edges = np.unique(different[np.searchsorted(upto, upto[-1] * np.arange(1, BUCKETS + 1) / BUCKETS)])
    low = float(different[0])
    for number, high in enumerate(edges):
        inside = (values <= high) & ((values > low) if number else (values >= low))
        yield low, float(high), inside
        low = float(high)


def _unrounded(values: Array) -> Array:
    """Values that differ by rounding alone made one, the most frequent of them; a continuum stays as it is."""
    different, place, counts = np.unique(values, return_inverse=True, return_counts=True, equal_nan=True)
    known = different[~np.isnan(different)]
    if not len(known):
        return values
    starts: list[int] = []
    for at, value in enumerate(known):
        if not starts or value - known[starts[-1]] > ROUNDING * (known[-1] - known[0]):
            starts.append(at)
            if len(starts) > LEVELS:
                return values
    made = different.copy()
    for start, end in zip(starts, [*starts[1:], len(known)], strict=True):
        made[start:end] = known[start + int(np.argmax(counts[start:end]))]
    return np.asarray(made[place].reshape(values.shape))


def range_name(low: float, high: float) -> str:
    """A bucket in words.

    Example:
        >>> range_name(1.0, 1.0), range_name(0.25, 2.0)
        ('1', '0.25 to 2')
    """
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
