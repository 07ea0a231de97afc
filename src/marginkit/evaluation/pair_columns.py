"""The pairs table as checked arrays: where every judgement of pairs begins."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from marginkit.errors import BadInput
from marginkit.evaluation.bootstrap import Array, Codes, Mask
from marginkit.evaluation.calibration import sigmoid
from marginkit.tables import Scores


@dataclass(frozen=True, slots=True)
class PairColumns:
    """The pairs table as arrays, checked; absent numbers are NaN.

    Args:
        gap: `[pair]`, logits.
        label: `[pair]`, P(chosen is better): as observed, else 1, and NaN for a tie without an observed probability.
        observed: `[pair]`, the observed probability alone.
        target_gap: `[pair]`, logits.
        grade_gap: `[pair]`, dataset units.
        tie: `[pair]`.
        length_ratio: `[pair]`, length of chosen / length of rejected; 1 where both are empty.
        length_unit: what it compares: tokens, or chars where a token count is missing; empty if there are neither.
        cluster: `[pair]`, codes.
    """

    gap: Array
    label: Array
    observed: Array
    target_gap: Array
    grade_gap: Array
    tie: Mask
    length_ratio: Array
    length_unit: str
    cluster: Codes

    @classmethod
    def read(cls, pairs: pa.Table) -> PairColumns:
        """Check a table in `PAIRS_SCHEMA` and take what evaluation needs; a table without `grade_gap` is an old one.

        Raises:
            BadInput: a column is missing, a reward or gap is not finite, or a label is outside [0, 1].
        """
        needed = {"group", "cluster", "reward_chosen", "reward_rejected", "gap", "label_prob", "target_gap", "tie"}
        if missing := sorted(needed - set(pairs.column_names)):
            raise BadInput(f"the pairs table lacks {', '.join(missing)}: pass what `score` wrote")

        def refuse(bad: Mask, rule: str) -> None:
            if bad.any():
                group = pairs["group"][int(bad.argmax())].as_py()
                raise BadInput(f"group {group}: {rule} ({int(bad.sum())} of {len(bad)} pairs)")

        for name in ("reward_chosen", "reward_rejected", "gap"):
            refuse(~np.isfinite(numbers(pairs, name)), f"{name} is not a finite number; score it again or drop it")
        observed, gap = numbers(pairs, "label_prob"), numbers(pairs, "gap")
        refuse((observed < 0) | (observed > 1), "label_prob is outside [0, 1]")
        target_gap = numbers(pairs, "target_gap")
        grade_gap = numbers(pairs, "grade_gap") if "grade_gap" in pairs.column_names else np.full(len(gap), np.nan)
        tie = pc.fill_null(pairs["tie"], False).to_numpy().astype(bool)
        ratio, unit = _length_ratio(pairs)
        return cls(
            gap=gap,
            label=np.where(np.isnan(observed), np.where(tie, np.nan, 1.0), observed),
            observed=observed,
            target_gap=np.where(np.isfinite(target_gap), target_gap, np.nan),
            grade_gap=np.where(np.isfinite(grade_gap), grade_gap, np.nan),
            tie=tie,
            length_ratio=ratio,
            length_unit=unit,
            cluster=cluster_codes(pairs),
        )

    def take(self, here: Mask) -> PairColumns:
        """The pairs that are `here`."""
        columns = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "length_unit"}
        return replace(self, **{name: column[here] for name, column in columns.items()})

    def values(self, temperature: float = 1.0) -> dict[str, Array]:
        """What each pair adds to every mean, `{name: [pair]}`; NaN where a pair has no part in it."""
        gap = self.gap / temperature
        prob = sigmoid(gap)
        longer = 0.5 + 0.5 * np.sign(self.length_ratio - 1)
        return {
            "accuracy": np.where(self.tie, np.nan, self.gap > 0),
            "nll": nll(gap, self.label),
            "brier": (self.label - prob) ** 2,
            "length_baseline": np.where(self.tie, np.nan, longer),
            "prob_error": np.abs(prob - sigmoid(self.target_gap)),
            "prob_error_label": np.abs(prob - self.observed),
        }


def nll(gap: Array, label: Array) -> Array:
    """`-(y log q + (1 - y) log(1 - q))` with q = sigmoid(gap), nats: `softplus(-gap)` where y = 1.

    Example:
        >>> nll(np.array([0.0, 40.0]), np.array([1.0, 1.0])).round(4).tolist()
        [0.6931, 0.0]
    """
    return np.asarray(np.logaddexp(0, -gap) + (1 - label) * gap)


def read_tables(scores: Scores | pa.Table | str | Path) -> tuple[pa.Table | None, pa.Table]:
    """Responses (None if there are none) and pairs of whatever was handed in."""
    if isinstance(scores, (str, Path)):
        path = Path(scores)
        if not (path if path.is_file() else path / "pairs.parquet").is_file():
            raise BadInput(f"{path}: neither a Parquet file nor a folder with pairs.parquet; pass what `score` wrote")
        try:
            scores = pq.read_table(path) if path.is_file() else Scores.load(path)
        except (pa.ArrowInvalid, OSError) as error:
            why = str(error).splitlines()[0]
            raise BadInput(f"{path}: not readable as Parquet ({why}); score again with marginkit score") from error
    return (scores.responses, scores.pairs) if isinstance(scores, Scores) else (None, scores)


def numbers(table: pa.Table, name: str) -> Array:
    """A column as floats, null as NaN."""
    return np.asarray(table[name].cast(pa.float64()).to_numpy(), dtype=np.float64)


def cluster_codes(table: pa.Table) -> Codes:
    """Clusters as codes, in the order of their names; a row without one is its group's."""
    column = pc.coalesce(table["cluster"], table["group"])
    names = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    encoded = names.dictionary_encode()
    rank = np.empty(len(encoded.dictionary), np.int64)
    rank[pc.sort_indices(encoded.dictionary).to_numpy()] = np.arange(len(rank))
    return np.asarray(rank[encoded.indices.to_numpy()])


def _length_ratio(pairs: pa.Table) -> tuple[Array, str]:
    for unit, column in (("tokens", "length"), ("chars", "chars")):
        if {f"{column}_chosen", f"{column}_rejected"} <= set(pairs.column_names):
            chosen, rejected = numbers(pairs, f"{column}_chosen"), numbers(pairs, f"{column}_rejected")
            if not (np.isnan(chosen) | np.isnan(rejected)).any():
                with np.errstate(invalid="ignore", divide="ignore"):
                    return np.where(chosen == rejected, 1.0, chosen / rejected), unit
    return np.full(len(pairs), np.nan), ""
