"""Reward-model benchmarks and collections of pairs: RewardBench 1 and 2, Skywork."""

from __future__ import annotations

from marginkit.data.checks import RowRefused
from marginkit.data.dialects.record import Dialect, listed
from marginkit.data.rows import Row, Rules


def _best_of_four(row: Row, rules: Rules) -> Row:
    sides = [(text, 1.0) for text in listed(row.get("chosen"), "chosen")]
    sides += [(text, 0.0) for text in listed(row.get("rejected"), "rejected")]
    models = row.get("models")
    models = listed(models, "models") if models is not None else []
    if len(models) != len(sides):  # the Ties subset names none, or not one each
        models = [None] * len(sides)
    if not {1.0, 0.0} <= {grade for _, grade in sides}:
        raise RowRefused("missing text", "chosen or rejected is an empty list", "give at least one of each")
    responses = [
        {"text": text, "score": grade, "model": model} for (text, grade), model in zip(sides, models, strict=True)
    ]
    return {"id": row.get("id"), "prompt": row.get("prompt"), "responses": responses, "subset": row.get("subset")}


DIALECTS = (
    Dialect(
        "reward-bench",
        "pair",
        ("prompt", "chosen", "chosen_model", "rejected", "rejected_model", "subset"),
        ("allenai/reward-bench",),
        marks=lambda columns, rows: all(isinstance(row.get("chosen"), str) for row in rows[:1]),
        repeats=True,
        notes=("there is no grade: the label alone",),
    ),
    Dialect(
        "reward-bench-2",
        "multi-response",
        ("prompt", "chosen", "rejected", "num_correct", "subset"),
        ("allenai/reward-bench-2",),
        ("id", "models"),
        translate=_best_of_four,
        repeats=True,
        notes=("grade = 1 for correct responses, 0 for the others; several correct ones are ties",),
    ),
    Dialect(
        "skywork",
        "pair",
        ("chosen", "rejected", "source"),
        ("Skywork/Skywork-Reward-Preference-80K-v0.2", "Skywork/Skywork-Reward-Preference-80K-v0.1"),
        marks=lambda columns, rows: columns == {"chosen", "rejected", "source"},
        notes=("there is no grade: the label alone",),
    ),
)
