"""The parts of a page that come from score tables: numbers, calibration, gaps, slices, mistakes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from marginkit.evaluation.bootstrap import estimate_mean
from marginkit.evaluation.calibration import reliability, sigmoid
from marginkit.evaluation.compare import rows
from marginkit.evaluation.gaps import by_gap
from marginkit.evaluation.metrics import Evaluation
from marginkit.evaluation.pair_columns import PairColumns
from marginkit.evaluation.slices import slice_table
from marginkit.records import Estimate
from marginkit.reporting.blocks import (
    Bars,
    Bin,
    Block,
    Chart,
    Density,
    Forest,
    PairText,
    PairTexts,
    Prose,
    Reliability,
    Section,
    Table,
)
from marginkit.reporting.numbers import in_words, number
from marginkit.reporting.runs import RunRecord

_CELLS = 24


def numbers_section(record: RunRecord) -> Section:
    """Everything that was measured on held-out data, with intervals and remarks."""
    if record.evaluation is None:
        return Section("Numbers", [Prose(_why_not_judged(record))], "numbers")
    known = {str(value): value for value in record.evaluation.values()}
    table = Table(
        ("", "value [95%]", "remark"),
        [(name, known.get(value, value), remark) for name, value, remark in rows(record.evaluation)],
        f"On held-out data; 95% intervals by resampling prompts ({_counted(record.evaluation)})",
        (1,),
    )
    return Section("Numbers", [table], "numbers")


def _why_not_judged(record: RunRecord) -> str:
    if not record.finished:
        return "The run is not finished, so nothing has been judged yet."
    return "Nothing was judged: the data has neither a test nor a dev split with pairs."


def _counted(evaluation: Evaluation) -> str:
    pairs = evaluation.counts.get("pairs")
    return f"{pairs:,} pairs" if pairs else f"{evaluation.counts.get('responses', 0):,} responses"


def bins_of(pairs: PairColumns, temperature: float = 1.0) -> list[Bin]:
    """The bins of a reliability diagram, after division by a temperature."""
    here = ~np.isnan(pairs.label)
    if not here.any():
        return []
    found = reliability(sigmoid(pairs.gap[here] / temperature), pairs.label[here], 10, pairs.cluster[here])
    return [Bin(one.confidence, one.outcome, one.outcome_low, one.outcome_high, one.count) for one in found]


def calibration_section(record: RunRecord) -> Section:
    """Reliability as the model says it, and at the temperature that fits these pairs best."""
    title, anchor = "Is its confidence right?", "calibration"
    if record.evaluation is None or record.pairs is None:
        return Section(title, [Prose(_why_not_judged(record))], anchor)
    found = record.evaluation
    raw = bins_of(record.columns)
    if not raw or "ece" not in found:
        return Section(title, [Prose("No pair has a label that a probability could be held against.")], anchor)
    charts: list[Block] = [
        Chart(
            Reliability(raw),
            "As the model says it: points on the dashed line are right, below it the model is too sure. Bars: pairs.",
            bins_in_words(raw),
        )
    ]
    temperature = found["temperature"].value
    if math.isfinite(temperature):
        cooled = bins_of(record.columns, temperature)
        charts.append(
            Chart(
                Reliability(cooled),
                f"Rewards divided by the temperature {number(temperature)}, fitted on these same pairs: what one "
                "number can repair.",
                bins_in_words(cooled),
            )
        )
    names = {
        "ece": "ECE",
        "ece_debiased": "ECE without the sample's noise",
        "ece_floor": "ECE of a calibrated model",
        "ece_at_temperature": "ECE at that temperature",
    }
    forest = [(words, found[name]) for name, words in names.items() if name in found]
    charts.append(
        Chart(
            Forest(forest, "calibration error"),
            "Calibration error beside what a perfectly calibrated model would show on as many pairs.",
            in_words(forest),
        )
    )
    return Section(title, charts, anchor)


def bins_in_words(bins: Sequence[Bin]) -> str:
    """The bins of a reliability diagram in words.

    Example:
        >>> bins_in_words([Bin(0.9, 0.8, 0.7, 0.9, 40)])
        'says 0.90, right 0.80 of 40'
    """
    return "; ".join(f"says {one.confidence:.2f}, right {one.outcome:.2f} of {one.count}" for one in bins)


def gaps_section(record: RunRecord) -> Section:
    """How far apart the model puts pairs, against how far apart they should be."""
    title, anchor = "How far apart?", "gaps"
    if record.pairs is None:
        return Section(title, [Prose("There are no pairs.")], anchor)
    columns = record.columns
    blocks: list[Block] = []
    for values, name in ((columns.target_gap, "target gap (logits)"), (columns.grade_gap, "grade gap (dataset units)")):
        here = np.isfinite(values)
        if here.sum() > 1 and np.ptp(values[here]) > 0:
            picture, left = density(values[here], columns.gap[here], name, "gap (logits)", diagonal="logits" in name)
            outside = f" {left:,} pairs at the ends are drawn at the edge." if left else ""
            blocks.append(
                Chart(
                    picture,
                    f"Where the model puts each pair, against its {name}.{outside}",
                    f"Counts of {int(here.sum()):,} pairs.",
                )
            )
            break
    if not blocks:
        return Section(title, [Prose("The pairs have neither grades nor targets of different sizes.")], anchor)
    study = by_gap(record.pairs)
    unit = study.unit
    shown = [one for one in study.buckets if math.isfinite(one.agreement.value)]
    if shown:
        labels = [one.name for one in shown]
        agreement = [one.agreement for one in shown]
        blocks.append(
            Chart(
                Bars(
                    labels,
                    [one.value for one in agreement],
                    [one.low for one in agreement],
                    [one.high for one in agreement],
                    "share the model orders as the label does",
                    (0.5, "a coin"),
                ),
                f"Agreement by {study.measure.replace('_', ' ')} ({unit}): larger gaps should be easier.",
                in_words(zip(labels, agreement, strict=True)),
            )
        )
        blocks.append(
            Table(
                (study.measure.replace("_", " "), "pairs", "agreement", "mean gap (logits)", "mean probability"),
                [(one.name, f"{one.n:,}", one.agreement, one.gap, one.prob) for one in study.buckets],
                f"Rank correlation of gap and {study.measure.replace('_', ' ')}: {study.correlation}; the mean gap "
                f"rises in {study.rises} of {study.steps} steps",
                (1, 2, 3, 4),
            )
        )
    if study.tie_auc is not None:
        blocks.append(
            Prose(
                f"Ties: a pair that is none has the larger gap in {study.tie_auc} of comparisons with one of "
                f"{study.ties:,} ties (0.5 tells nothing, 1 tells all)."
            )
        )
    return Section(title, blocks, anchor)


def density(
    x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], x_label: str, y_label: str, *, diagonal: bool
) -> tuple[Density, int]:
    """Counts on a grid over the middle 99% of both; what lies outside is counted at the edge. And how many did."""
    edges, moved = [], np.zeros(len(x), bool)
    held = []
    for values in (x, y):
        low, high = np.quantile(values, [0.005, 0.995])
        if low == high:
            low, high = low - 0.5, high + 0.5
        moved |= (values < low) | (values > high)
        held.append(np.clip(values, low, high))
        edges.append(np.linspace(low, high, _CELLS + 1))
    counts, _, _ = np.histogram2d(held[0], held[1], bins=edges)
    rounded = [[float(f"{edge:.5g}") for edge in own] for own in edges]
    grid = counts.astype(int).tolist()
    return Density(rounded[0], rounded[1], grid, x_label, y_label, diagonal), int(moved.sum())


def slices_section(record: RunRecord) -> Section:
    """The same numbers by source, subset, length and grade gap."""
    title, anchor = "Slices", "slices"
    if record.pairs is None:
        return Section(title, [Prose("There are no pairs.")], anchor)
    found = slice_table(record.pairs)
    kinds = list(dict.fromkeys(one.by for one in found))
    told = {kind: [one for one in found if one.by == kind] for kind in kinds}
    blocks: list[Block] = []
    for kind, own in told.items():
        if len(own) < 2:
            continue
        small = sum(one.small for one in own)
        note = f"; {small} with too few pairs to say much, marked *" if small else ""
        blocks.append(
            Table(
                (kind.replace("_", " "), "pairs", "accuracy", "longer is better", "NLL", "ECE", "its floor"),
                [
                    (
                        f"{one.name}{' *' if one.small else ''}",
                        f"{one.n:,}",
                        one.accuracy,
                        one.length_baseline,
                        one.nll,
                        one.ece,
                        number(one.ece_floor.high),
                    )
                    for one in own
                ],
                f"By {_KINDS.get(kind, kind)}{note}",
                (1, 2, 3, 4, 5, 6),
            )
        )
    return Section(title, blocks or [Prose("All pairs are alike in source, subset, length and grade gap.")], anchor)


_KINDS = {
    "length_ratio": "length of the better response over the worse one",
    "grade_gap": "grade gap (dataset units)",
}


def mistakes_section(record: RunRecord) -> Section:
    """The pairs it is most sure of and wrong about."""
    title, anchor = "Sure and wrong", "mistakes"
    if record.mistakes is None:
        why = "The texts of these pairs are kept when a run is judged; this folder has none."
        return Section(title, [Prose(why)], anchor)
    rows_, total = record.mistakes
    intro = Prose(
        "The pairs that cost the model most, at most two a prompt: it says with confidence what the label denies. Look "
        "here for wrong labels as much as for a wrong model."
    )
    return Section(title, [intro, PairTexts([_text(row) for row in rows_], total)], anchor)


def _text(row: Mapping[str, Any]) -> PairText:
    facts = [("gap", f"{number(row['gap'])} logits"), ("P(label is right)", f"{row['prob']:.3f}")]
    if row.get("label") not in (None, 1.0):
        facts.append(("observed P", number(row["label"])))
    if row.get("grade_chosen") is not None and row.get("grade_rejected") is not None:
        facts.append(("grades", f"{number(row['grade_chosen'])} and {number(row['grade_rejected'])}"))
    if row.get("strength") is not None:
        facts.append(("strength", number(row["strength"])))
    if row.get("votes"):
        facts.append(("votes", ", ".join(number(count) for count in row["votes"])))
    where = f"group {row['group']}{' of ' + str(row['source']) if row.get('source') else ''}"
    prompt, chosen, rejected = (str(row[name]) for name in ("prompt", "chosen", "rejected"))
    return PairText(where, prompt, chosen, rejected, facts, int(row.get("clipped", 0)))


def against_length(pairs: PairColumns) -> Estimate | None:
    """Accuracy - accuracy of the longer response, on the same pairs; None where lengths are not known."""
    values = pairs.values()
    difference = values["accuracy"] - values["length_baseline"]
    here = np.isfinite(difference)
    return estimate_mean(difference[here], pairs.cluster[here]) if here.any() else None
