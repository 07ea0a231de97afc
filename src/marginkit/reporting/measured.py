"""Benchmarks that models were judged on: one row a file and model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from marginkit.records import Estimate
from marginkit.reporting.blocks import Block, Prose, Section, Table
from marginkit.reporting.numbers import number
from marginkit.reporting.runs import RunRecord

_SHOWN = ("accuracy", "nll", "ece")


def benchmarks_section(records: Sequence[RunRecord]) -> Section:
    """Files x models: accuracy beside length, NLL, ECE with its floor; sections of RewardBench below."""
    several = len(records) > 1
    names = list(dict.fromkeys(str(one["name"]) for record in records for one in record.benchmarks))
    rows, sections = [], []
    for name in names:
        for record in records:
            for one in record.benchmarks:
                if str(one["name"]) == name:
                    rows.append(_row(name, record.name if several else None, one))
                    sections += _sections(name, record.name if several else None, one)
    heads = (
        "file",
        *(("model",) if several else ()),
        "pairs",
        "accuracy",
        "longer is better",
        "NLL",
        "ECE",
        "its floor",
    )
    first = 2 if several else 1
    blocks: list[Block] = [Table(heads, rows, "Judged on other files", tuple(range(first, len(heads))))]
    seen = [
        f"{one['name']} ({record.name})" for record in records for one in record.benchmarks if one.get("trained_on")
    ]
    if seen:
        blocks.append(
            Prose(f"Trained on this very file: {', '.join(seen)}. How good it is on other rows is not known.")
        )
    if sections:
        heads = ("benchmark", *(("model",) if several else ()), "section", "score")
        blocks.append(Table(heads, sections, "Sections", (len(heads) - 1,)))
    if several and names:
        blocks.append(
            Prose(
                f"{len(names)} file(s) x {len(records)} models: of that many numbers some stand out by chance. The "
                "intervals are not corrected for it."
            )
        )
    return Section("Benchmarks", blocks, "benchmarks")


def _row(name: str, model: str | None, one: Mapping[str, Any]) -> tuple[str | Estimate, ...]:
    found = one.get("evaluation") or {}
    pairs = found.get("counts", {}).get("pairs") or found.get("accuracy", {}).get("n") or 0
    floor = found.get("ece_floor") or {}
    numbers_ = {key: Estimate.from_json(found[key]) if found.get(key) else "-" for key in (*_SHOWN, "length_baseline")}
    return (
        name,
        *((model,) if model is not None else ()),
        f"{pairs:,}",
        numbers_["accuracy"],
        numbers_["length_baseline"],
        numbers_["nll"],
        numbers_["ece"],
        number(floor.get("high")),
    )


def _sections(name: str, model: str | None, one: Mapping[str, Any]) -> list[tuple[str | Estimate, ...]]:
    found = one.get("sections")
    if not isinstance(found, Mapping):
        return []
    lead = (name, *((model,) if model is not None else ()))
    return [(*lead, str(key), _score(value)) for key, value in found.items() if _score(value)]


def _score(value: Any) -> str | Estimate:
    if isinstance(value, Mapping) and "value" in value:
        return Estimate.from_json(value)
    return number(float(value)) if isinstance(value, (int, float)) else ""
