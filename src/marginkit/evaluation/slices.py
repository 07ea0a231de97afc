"""Where a model is good and where not: the same numbers by source, subset, length ratio and grade gap."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from marginkit.errors import BadInput
from marginkit.evaluation.bootstrap import Mask
from marginkit.evaluation.calibration import sigmoid
from marginkit.evaluation.gaps import buckets, range_name
from marginkit.evaluation.metrics import FEW
from marginkit.evaluation.noise import noise_floor
from marginkit.evaluation.pair_columns import PairColumns, read_tables
from marginkit.evaluation.questions import Questions
from marginkit.records import Estimate
from marginkit.tables import Scores

DEFAULT_BY = ("source", "subset", "length_ratio", "grade_gap")
MOST_SLICES = 50
_RATIOS = (
    ("chosen under half as long", 0.0, 0.5),
    ("chosen shorter (1/2 to 4/5)", 0.5, 0.8),
    ("about as long (4/5 to 5/4)", 0.8, 1.25),
    ("chosen longer (5/4 to 2)", 1.25, 2.0),
    ("chosen over twice as long", 2.0, np.inf),
)


@dataclass(frozen=True, slots=True)
class Slice:
    """One slice of the pairs, judged by itself.

    Args:
        by: what was sliced by.
        name: which slice.
        n: pairs in it.
        small: fewer than 20: its numbers are shown and mean little.
        accuracy: as in `evaluate`; ties left out.
        nll: nats a pair.
        ece: plug-in, with the interval of the debiased one.
        ece_floor: what a calibrated model would show on as many pairs; a small slice shows a large error by itself.
        length_baseline: accuracy of the longer response; NaN where lengths are not known.
    """

    by: str
    name: str
    n: int
    small: bool
    accuracy: Estimate
    nll: Estimate
    ece: Estimate
    ece_floor: Estimate
    length_baseline: Estimate

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, estimates as they are elsewhere; NaN becomes None."""
        numbers = ("accuracy", "nll", "ece", "ece_floor", "length_baseline")
        found = {name: getattr(self, name) for name in ("by", "name", "n", "small")}
        return found | {name: getattr(self, name).to_json() for name in numbers}


def slice_table(
    scores: Scores | pa.Table | str | Path,
    by: Iterable[str] = DEFAULT_BY,
    *,
    bins: int = 10,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Slice]:
    """Accuracy, NLL, calibration error and length baseline of every slice.

    Each pair is in exactly one slice of each kind: the counts of a kind add up to all pairs. Pairs without a value
    are a slice of their own, `(none)`; of more than 50 values the largest 49 are shown and the rest are one slice that
    says how many values it holds. A kind that no pair has (no grades, no lengths, an old table) gives no rows.

    Args:
        scores: what `score` gave, its pairs table, or where they were saved.
        by: `source`, `subset`, any other column of the pairs table, `length_ratio` (chosen to rejected), `grade_gap`.
        bins: of the calibration error.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        The slices, kind by kind: numbers in their order, names by size.

    Raises:
        BadInput: no pairs, or no such column.

    Example:
        >>> table = pa.table({
        ...     "group": ["a", "b", "c"], "cluster": ["a", "b", "c"], "tie": [False] * 3, "source": ["x", "y", "x"],
        ...     "reward_chosen": [2.0, 1.0, -1.0], "reward_rejected": [0.0] * 3, "gap": [2.0, 1.0, -1.0],
        ...     "label_prob": pa.nulls(3, pa.float64()), "target_gap": pa.nulls(3, pa.float64()),
        ... })
        >>> [(one.name, one.n, one.small, one.accuracy.value) for one in slice_table(table, ["source"])]
        [('x', 2, True, 0.5), ('y', 1, True, 1.0)]
    """
    table = read_tables(scores)[1]
    if not len(table):
        raise BadInput("there are no pairs to slice: score groups that have pairs")
    pairs = PairColumns.read(table)
    found = []
    for kind in by:
        for name, inside in _slices(kind, table, pairs):
            found.append(_judged(kind, name, pairs.take(inside), bins, resamples, seed))
    return found


def _slices(kind: str, table: pa.Table, pairs: PairColumns) -> Iterator[tuple[str, Mask]]:
    """Names and masks of one kind of slices; nothing where no pair has a value."""
    if kind == "length_ratio":
        known = ~np.isnan(pairs.length_ratio)
        parts = [(name, (pairs.length_ratio >= low) & (pairs.length_ratio < high)) for name, low, high in _RATIOS]
        parts[-1] = (_RATIOS[-1][0], pairs.length_ratio >= _RATIOS[-1][1])
    elif kind == "grade_gap":
        known = ~np.isnan(pairs.grade_gap)
        parts = [(range_name(low, high), inside) for low, high, inside in buckets(pairs.grade_gap)]
    elif kind in table.column_names:
        column = table[kind].cast(pa.string())
        known = ~column.is_null().to_numpy()
        parts = list(_named(column))
    elif kind in DEFAULT_BY:
        return
    else:
        raise BadInput(f"by {kind}: no such column; the pairs table has {', '.join(table.column_names)}")
    if known.any():
        yield from ((name, inside) for name, inside in parts if inside.any())
        if not known.all():
            yield "(none)", ~known


def _named(column: pa.ChunkedArray) -> Iterator[tuple[str, Mask]]:
    """The values of a column, largest slices first; beyond 50 of them the rest in one."""
    counted = sorted(pc.value_counts(column.drop_null()).to_pylist(), key=lambda row: (-row["counts"], row["values"]))
    shown = counted if len(counted) <= MOST_SLICES else counted[: MOST_SLICES - 1]
    for row in shown:
        yield row["values"], pc.fill_null(pc.equal(column, row["values"]), False).to_numpy()
    if len(shown) < len(counted):
        rest = pa.array([row["values"] for row in counted[len(shown) :]])
        yield f"({len(rest)} smaller ones)", pc.is_in(column, rest).to_numpy()


def _judged(kind: str, name: str, pairs: PairColumns, bins: int, resamples: int, seed: int) -> Slice:
    values = pairs.values()
    asked = Questions(pairs.cluster, resamples=resamples, seed=seed)
    for number in ("accuracy", "nll", "length_baseline"):
        asked.mean(number, values[number])
    labelled = ~np.isnan(pairs.label)
    prob = sigmoid(pairs.gap[labelled])
    asked.ece("ece", prob, pairs.label[labelled], labelled, bins=bins)
    answers = asked.answers()
    floor = Estimate(np.nan, np.nan, np.nan, 0, 0)
    if len(prob):
        drawn = noise_floor(prob, bins, seed=seed)
        floor = Estimate(drawn.mean, drawn.low, drawn.high, len(prob), 0)
    n = len(pairs.gap)
    return Slice(by=kind, name=name, n=n, small=n < FEW, ece_floor=floor, **answers)
