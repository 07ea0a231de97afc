"""The page of several runs: which is better at what, as far as can be told."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from marginkit.errors import BadInput
from marginkit.evaluation.compare import Comparison, compare, p_words, verdict
from marginkit.records import Estimate
from marginkit.reporting.blocks import (
    Block,
    Chart,
    Fold,
    Forest,
    Lines,
    Page,
    Prose,
    Reliability,
    Section,
    Series,
    Table,
    Verdict,
)
from marginkit.reporting.judged import against_length, bins_in_words, bins_of
from marginkit.reporting.measured import benchmarks_section
from marginkit.reporting.numbers import in_words, number
from marginkit.reporting.run_page import footer
from marginkit.reporting.runs import RunRecord
from marginkit.reporting.trained import repeat_section

MOST_RUNS = 20
_OVERLAID = 6
_MEASURES = {
    "accuracy": "accuracy",
    "nll": "NLL (nats a pair)",
    "brier": "Brier score",
    "ece": "calibration error (ECE)",
}


def comparison_page(records: Sequence[RunRecord]) -> Page:
    """The page of several runs or folders of tables.

    The first is what the others are held against. Differences are paired, on the same pairs; models that were judged on
    other pairs stand side by side without differences, and the page says so.

    Args:
        records: 2 to 20.

    Raises:
        BadInput: fewer than two, or more than twenty.
    """
    if not 2 <= len(records) <= MOST_RUNS:
        raise BadInput(f"{len(records)} runs: a comparison is of 2 to {MOST_RUNS}")
    first, others = records[0], records[1:]
    found = {one.name: one.held_against(first) for one in others}
    count = sum(len(one) for one in found.values() if isinstance(one, Comparison))
    sections = [
        _runs_section(records),
        _numbers_section(records),
        _differences_section(first, found, count),
        _reliability_section(records),
    ]
    if any(record.benchmarks for record in records):
        sections += [benchmarks_section(records), *_benchmark_differences(records)]
    sections += [_curves_section(records), _repeat(records)]
    names = ", ".join(record.name for record in records)
    lead = f"{names}. Differences are to {first.name}, on the same pairs, with 95% intervals over prompts."
    return Page(f"Comparison of {len(records)} models", lead, _verdicts(records, found, count), sections, footer())


def _verdicts(records: Sequence[RunRecord], found: Mapping[str, Comparison | str], count: int) -> list[Verdict]:
    first = records[0]
    made = []
    for name, one in found.items():
        if isinstance(one, str):
            made.append(Verdict("warning", f"{name} and {first.name} are not compared: {one}."))
            continue
        said = verdict(one, names=(name, first.name))
        nll, accuracy = one.get("nll"), one.get("accuracy")
        better = (nll is not None and nll.high < 0) or (accuracy is not None and accuracy.low > 0)
        worse = (nll is not None and nll.low > 0) or (accuracy is not None and accuracy.high < 0)
        made.append(Verdict("note" if better == worse else "good" if better else "warning", said))
    behind = [record.name for record in records if record.pairs is not None and _no_better_than_length(record)]
    if behind:
        said = "cannot be told from the rule that the longer response is better"
        made.append(
            Verdict("warning", f"{', '.join(behind)} {said}, or {'are' if len(behind) > 1 else 'is'} behind it.")
        )
    if count > 4:
        by_chance = f"{count} intervals are looked at: about {0.05 * count:.1f} would leave 0 out by chance."
        made.append(Verdict("note", by_chance))
    return made


def _no_better_than_length(record: RunRecord) -> bool:
    difference = against_length(record.columns)
    return difference is not None and not difference.low > 0


def _runs_section(records: Sequence[RunRecord]) -> Section:
    rows = []
    for record in records:
        train = record.splits.get("train", {})
        cost = record.manifest.get("cost") or {}
        state = "tables" if not record.config else "finished" if record.finished else "not finished"
        rows.append(
            (
                record.name,
                record.recipe or "-",
                f"{train['pairs']:,}" if train else "-",
                f"{len(record.pairs):,}" if record.pairs is not None else "-",
                number(cost.get("seconds")),
                state,
            )
        )
    heads = ("", "recipe", "train pairs", "judged pairs", "seconds", "state")
    blocks: list[Block] = [Table(heads, rows, "The models", (2, 3, 4))]
    differing = _differing([record.config for record in records])
    if differing:
        table = [(key, *(_short(values[at]) for at in range(len(records)))) for key, values in differing.items()]
        blocks.append(Table(("setting", *(record.name for record in records)), table, "Settings in which they differ"))
    if len({record.splits.get("train", {}).get("fingerprint") for record in records}) > 1:
        blocks.append(Prose("They were not all trained on the same pairs: a difference may be the data's."))
    return Section("The models", blocks, "models")


def _short(value: Any) -> str:
    text = "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


_UNIMPORTANT = ("out", "store.", "model.fresh.", "recipe")


def _differing(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Keys whose values are not the same in all configurations."""
    flat = [dict(_leaves(config)) for config in configs]
    if sum(bool(one) for one in flat) < 2:
        return {}
    keys = list(dict.fromkeys(key for one in flat for key in one))
    values = {key: [one.get(key) for one in flat] for key in keys if not key.startswith(_UNIMPORTANT)}
    return {key: own for key, own in values.items() if any(value != own[0] for value in own)}


def _leaves(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        return [leaf for key, inner in value.items() for leaf in _leaves(inner, f"{prefix}.{key}" if prefix else key)]
    return [(prefix, value)] if prefix and value != {} else []


def _numbers_section(records: Sequence[RunRecord]) -> Section:
    blocks: list[Block] = []
    judged = [record for record in records if record.evaluation is not None and record.pairs is not None]
    for name, words in _MEASURES.items():
        rows = [
            (record.name, record.evaluation[name])
            for record in judged
            if record.evaluation and name in record.evaluation
        ]
        if rows:
            caption = f"{words[0].upper()}{words[1:]}"
            blocks.append(Chart(Forest(rows, words, zero=False), caption, in_words(rows)))
    if not blocks:
        return Section("Numbers", [Prose("None of them has judged pairs.")], "numbers")
    heads = ("", "pairs", "accuracy", "longer is better", "NLL", "Brier score", "ECE", "its floor", "temperature")
    rows_ = []
    for record in judged:
        own: Mapping[str, Estimate] = record.evaluation or {}
        cells: list[str | Estimate] = [record.name, f"{len(record.pairs):,}" if record.pairs is not None else "-"]
        cells += [own.get(name, "-") for name in ("accuracy", "length_baseline", "nll", "brier", "ece")]
        floor = own.get("ece_floor")
        cells += [number(floor.high) if floor is not None else "-", own.get("temperature", "-")]
        rows_.append(cells)
    blocks.append(Table(heads, rows_, "Each on its own held-out pairs", tuple(range(1, len(heads)))))
    return Section("Numbers", blocks, "numbers")


def _differences_section(first: RunRecord, found: Mapping[str, Comparison | str], count: int) -> Section:
    blocks: list[Block] = []
    compared = {name: one for name, one in found.items() if isinstance(one, Comparison)}
    for measure, words in (("nll", "NLL"), ("brier", "Brier score"), ("accuracy", "accuracy")):
        rows = [(name, one[measure]) for name, one in compared.items() if measure in one]
        if rows:
            better = "right" if measure == "accuracy" else "left"
            picture = Forest(rows, f"{words}, difference to {first.name}")
            blocks.append(Chart(picture, f"{words}: {better} is better.", in_words(rows)))
    tests = [(name, one.mcnemar) for name, one in compared.items() if one.mcnemar is not None]
    if tests:
        heads = ("", "only this one right", f"only {first.name} right", "McNemar, exact p", "mid-p")
        rows_ = [
            (name, f"{test.only_first:,}", f"{test.only_second:,}", p_words(test.p), p_words(test.mid_p))
            for name, test in tests
        ]
        caption = "Pairs that only one of two orders rightly (pairs counted one by one, not by prompt)"
        blocks.append(Table(heads, rows_, caption, (1, 2, 3, 4)))
    blocks += [Prose(f"{name} is not compared: {why}.") for name, why in found.items() if isinstance(why, str)]
    if count:
        blocks.append(Prose(f"{count} intervals in all, not corrected for their number."))
    return Section(f"Differences to {first.name}", blocks, "differences")


def _reliability_section(records: Sequence[RunRecord]) -> Section:
    title, anchor = "Is their confidence right?", "calibration"
    drawn = [(record.name, bins_of(record.columns)) for record in records if record.pairs is not None]
    drawn = [(name, bins) for name, bins in drawn if bins]
    if not drawn:
        return Section(title, [Prose("None of them has pairs with a label.")], anchor)
    blocks: list[Block] = [
        Chart(
            Reliability(bins),
            f"{name}: right against said; below the dashed line it is too sure.",
            bins_in_words(bins),
        )
        for name, bins in drawn
    ]
    return Section(title, blocks, anchor)


def _benchmark_differences(records: Sequence[RunRecord]) -> list[Section]:
    """Paired differences on each benchmark file, where the tables of both are there."""
    first = records[0]
    rows: list[tuple[str | Estimate, ...]] = []
    tables = {
        (record.name, str(one["name"])): record.path / "benchmarks" / str(one["name"])
        for record in records
        for one in record.benchmarks
    }
    names = list(dict.fromkeys(name for _, name in tables))
    for name, record in itertools.product(names, records[1:]):
        ours, theirs = tables.get((record.name, name)), tables.get((first.name, name))
        if ours is None or theirs is None or not all((path / "pairs.parquet").is_file() for path in (ours, theirs)):
            continue
        try:
            found = compare(ours, theirs)
        except BadInput as error:
            rows.append((name, record.name, f"not compared: {error}", "", ""))
            continue
        test = p_words(found.mcnemar.mid_p) if found.mcnemar is not None else "-"
        rows.append((name, record.name, found.get("accuracy", "-"), found.get("nll", "-"), test))
    if not rows:
        return []
    clear = sum(
        isinstance(cell, Estimate) and not math.isnan(cell.low) and not cell.low <= 0 <= cell.high
        for row in rows
        for cell in row
    )
    total = sum(isinstance(cell, Estimate) for row in rows for cell in row)
    heads = ("file", "model", "accuracy", "NLL", "McNemar, mid-p")
    told = f"{clear} of {total} intervals leave 0 out; about {0.05 * total:.1f} would by chance alone."
    table = Table(heads, rows, f"Model - {first.name}, on the same pairs of each file", (2, 3, 4))
    return [Section(f"Benchmarks, differences to {first.name}", [table, Prose(told)], "benchmark-differences")]


def _curves_section(records: Sequence[RunRecord]) -> Section:
    title, anchor = "How training went", "training"
    blocks: list[Block] = []
    for caption, key, unit in (
        ("Accuracy on the dev split", "eval_rewards/accuracies", "accuracy"),
        ("NLL on the dev split", "eval_nll", "nats a pair"),
        ("Gap in training", "rewards/margins", "logits"),
        ("Log-probability of the better response in training", "logps/chosen", "nats"),
    ):
        series = [
            Series(record.name, record.history.series[key], dashed=at % 2 == 1)
            for at, record in enumerate(records)
            if record.history.series.get(key)
        ][:_OVERLAID]
        if len(series) > 1:
            alt = "; ".join(f"{one.name} ends at {number(one.points[-1][1])}" for one in series)
            unit_x = "epoch" if records[0].history.unit == "epoch" else "optimizer step"
            more = f" (the first {_OVERLAID})" if len(records) > _OVERLAID else ""
            blocks.append(Chart(Lines(series, unit_x, unit), caption + more, alt))
    return Section(title, blocks or [Prose("There are no two logs with the same curves.")], anchor)


def _repeat(records: Sequence[RunRecord]) -> Section:
    blocks: list[Block] = [Fold(record.name, repeat_section(record).blocks) for record in records]
    return Section("How to repeat them", blocks, "repeat")
