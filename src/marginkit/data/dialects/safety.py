"""Helpfulness beside harmlessness: HH-RLHF transcripts, and PKU-SafeRLHF's two labels a row."""

from __future__ import annotations

from marginkit.data.checks import RowRefused
from marginkit.data.dialects.record import Dialect, Side, coded, duel, numeral, texts_like
from marginkit.data.rows import Row, Rules

DISAGREE = "better and safer disagree"
UNSAFE = "both responses unsafe"
_AXES = ("better_response_id", "safer_response_id")


def _pku(row: Row, rules: Rules, axis: str) -> Row:
    said = {name: coded(numeral(row.get(name), name), name, {0.0: 0, 1.0: 1, None: None}) for name in _AXES}
    better, safer = (said[name] for name in _AXES)
    if said[axis] is None:
        raise RowRefused("missing evidence", f"{axis} is null", "remove the row")
    if None not in (better, safer) and better != safer:
        rule = f"better_response_id is {better}, safer_response_id is {safer}"
        rules.warn(DISAGREE, rule, f"{axis} is read")
    safe = [row.get(f"is_response_{at}_safe") for at in (0, 1)]
    if safe == [False, False]:
        rules.warn(UNSAFE, "neither response is safe", "kept")
    severity = [numeral(row.get(f"response_{at}_severity_level"), f"response_{at}_severity_level") for at in (0, 1)]
    sides = [
        Side(
            row.get(f"response_{at}"),
            model=row.get(f"response_{at}_source"),
            aspects={
                "severity": severity[at],
                "safe": None if not isinstance(safe[at], bool) else float(safe[at] is True),
            },
        )
        for at in (0, 1)
    ]
    return {**duel(row.get("prompt"), sides, said[axis]), "subset": row.get("prompt_source")}


_PKU_READS = (
    "prompt_source",
    *(f"is_response_{at}_safe" for at in (0, 1)),
    *(f"response_{at}_{name}" for at in (0, 1) for name in ("severity_level", "source")),
)
_PKU_NOTE = "severity level (0 to 3) and safety are kept as the aspects severity and safe; there is no grade"

DIALECTS = (
    Dialect(
        "hh-rlhf",
        "pair",
        ("chosen", "rejected"),
        ("Anthropic/hh-rlhf",),
        marks=lambda columns, rows: (
            columns == {"chosen", "rejected"} and all(texts_like(rows, side, "Human:") for side in columns)
        ),
        notes=("there is no grade: the label alone",),
    ),
    Dialect(
        "pku-saferlhf",
        "pair",
        ("prompt", "response_0", "response_1", *_AXES),
        ("PKU-Alignment/PKU-SafeRLHF",),
        _PKU_READS,
        translate=lambda row, rules: _pku(row, rules, "better_response_id"),
        notes=(
            "chosen = better_response_id (helpfulness); mapping=pku-saferlhf-safer reads safer_response_id",
            _PKU_NOTE,
        ),
    ),
    Dialect(
        "pku-saferlhf-safer",
        "pair",
        ("prompt", "response_0", "response_1", *_AXES),
        reads=_PKU_READS,
        translate=lambda row, rules: _pku(row, rules, "safer_response_id"),
        notes=("chosen = safer_response_id (harmlessness)", _PKU_NOTE),
        by_name=True,
    ),
)
