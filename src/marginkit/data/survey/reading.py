"""What the reader had to say, as remarks of the survey: rows refused, rows kept with a remark, contradictions."""

from __future__ import annotations

from collections.abc import Mapping

from marginkit.data.checks import Findings
from marginkit.data.survey.remarks import Level, Remark, share

TOO_MANY = 0.05  # share of rows; above, training refuses contradictions


def about_reading(findings: Findings) -> list[Remark]:
    """One remark on the rows that were refused, one on contradictions, one for each reason among the kept.

    Args:
        findings: of the reading.

    Returns:
        The remarks; an `ok` one where every row was kept.

    Example:
        >>> about_reading(Findings("a.jsonl", "pair", read=3, kept=3))[0].says
        'all 3 rows are kept'
    """
    dropped = findings.broken
    contrary = dropped.pop("contradiction", 0)
    duplicates = dropped.pop("duplicate row", 0)
    remarks = []
    if not findings.kept:
        remarks.append(Remark("rows", "problem", "no row is left", _fix(findings, _most(findings.dropped))))
    elif dropped:
        count = sum(dropped.values())
        level: Level = "problem" if count > TOO_MANY * findings.read else "warning"
        words = ", ".join(f"{reason} {number:,}" for reason, number in dropped.items())
        remarks.append(
            Remark(
                "rows", level, f"{share(count, findings.read)} rows refused: {words}", _fix(findings, _most(dropped))
            )
        )
    else:
        remarks.append(Remark("rows", "ok", f"all {findings.read:,} rows are kept" if not findings.dropped else ""))
    if contrary:
        level = "problem" if contrary > TOO_MANY * findings.read else "warning"
        says = f"{share(contrary, findings.read)} rows carry evidence against their own label"
        first = findings.first("contradiction")
        where = f"{first.place}: {first.rule}; " if first else ""
        fix = f"{where}which column is which? or --contradiction keep, trust_label or trust_grade"
        remarks.append(Remark("labels", level, says, fix))
    if duplicates:
        says = f"{share(duplicates, findings.read)} rows are equal to an earlier one and left out"
        remarks.append(Remark("duplicates", "note", says))
    for reason, count in findings.warned.items():
        first = findings.first(reason)
        fix = "" if first is None else f"first {first.place}: {first.rule}; {first.fix}"
        remarks.append(Remark("rows", "note", f"{share(count, findings.read)} rows: {reason}", fix))
    return [remark for remark in remarks if remark.says]


def _most(dropped: Mapping[str, int]) -> str:
    return max(dropped, key=lambda reason: dropped[reason], default="")


def _fix(findings: Findings, reason: str) -> str:
    first = findings.first(reason)
    return "" if first is None else f"first {first.place}: {first.rule}; {first.fix}"
