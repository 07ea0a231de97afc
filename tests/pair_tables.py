"""Tables of scores for the tests of what judges them."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from marginkit.evaluation.calibration import sigmoid
from marginkit.tables import PAIRS_SCHEMA, RESPONSES_SCHEMA


def pairs(gap: npt.ArrayLike, **columns: Any) -> pa.Table:
    """A pairs table: one group and one cluster a pair, no ties, nothing observed, lengths equal, unless told."""
    gaps = np.asarray(gap, dtype=float)
    n = len(gaps)
    filled = {
        "group": [f"g{i}" for i in range(n)],
        "pair": [0] * n,
        "chosen": [0] * n,
        "rejected": [1] * n,
        "cluster": [f"c{i}" for i in range(n)],
        "reward_chosen": gaps,
        "reward_rejected": np.zeros(n),
        "gap": gaps,
        "prob": sigmoid(gaps),
        "tie": [False] * n,
        "weight": np.ones(n),
        "length_chosen": [10] * n,
        "length_rejected": [10] * n,
    } | columns
    return _table(filled, PAIRS_SCHEMA, n)


def responses(**columns: Any) -> pa.Table:
    """A responses table, one group and one cluster a response."""
    n = len(next(iter(columns.values())))
    filled = {"group": [f"g{i}" for i in range(n)], "cluster": [f"c{i}" for i in range(n)]} | columns
    return _table(filled, RESPONSES_SCHEMA, n)


def _table(filled: dict[str, Any], schema: pa.Schema, n: int) -> pa.Table:
    return pa.table(
        {
            field.name: pa.array(filled[field.name], field.type, from_pandas=True)
            if field.name in filled
            else pa.nulls(n, field.type)
            for field in schema
        }
    )
