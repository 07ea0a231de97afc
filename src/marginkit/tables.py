"""What follows training: two tables of scores, which need no model and no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_WHERE = [("split", pa.string()), ("subset", pa.string()), ("source", pa.string()), ("cluster", pa.string())]

RESPONSES_SCHEMA = pa.schema(
    [
        ("group", pa.string()),
        ("response", pa.int32()),
        *_WHERE,
        ("model", pa.string()),
        ("length", pa.int32()),  # response tokens
        ("chars", pa.int32()),
        ("logp", pa.float64()),  # nats, summed over response tokens
        ("ref_logp", pa.float64()),
        ("head", pa.float64()),
        ("reward", pa.float64()),  # logits: what the model says of the response
        ("grade", pa.float64()),
        ("utility", pa.float64()),
    ]
)
PAIRS_SCHEMA = pa.schema(
    [
        ("group", pa.string()),
        ("pair", pa.int32()),
        ("chosen", pa.int32()),
        ("rejected", pa.int32()),
        *_WHERE,
        ("reward_chosen", pa.float64()),
        ("reward_rejected", pa.float64()),
        ("gap", pa.float64()),  # logits: how far apart the model puts them
        ("prob", pa.float64()),  # sigmoid(gap): the model's P(chosen is better)
        ("label_prob", pa.float64()),  # observed P(chosen is better): vote share or given probability; null if none
        ("target_gap", pa.float64()),  # logits: how far apart the recipe's target puts them; null if none
        ("grade_gap", pa.float64()),  # dataset units: the strength, else the difference of grades; null if none
        ("tie", pa.bool_()),
        ("weight", pa.float64()),
        ("length_chosen", pa.int32()),
        ("length_rejected", pa.int32()),
        ("chars_chosen", pa.int32()),
        ("chars_rejected", pa.int32()),
    ]
)


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model says of graded data: one row a response, one row a pair.

    Args:
        responses: a table in `RESPONSES_SCHEMA`.
        pairs: a table in `PAIRS_SCHEMA`.
    """

    responses: pa.Table
    pairs: pa.Table

    def save(self, folder: str | Path) -> Path:
        """Write `responses.parquet` and `pairs.parquet` into `folder`."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        pq.write_table(self.responses, target / "responses.parquet")
        pq.write_table(self.pairs, target / "pairs.parquet")
        return target

    @classmethod
    def load(cls, folder: str | Path) -> Scores:
        """Read what `save` wrote."""
        source = Path(folder)
        return cls(pq.read_table(source / "responses.parquet"), pq.read_table(source / "pairs.parquet"))
