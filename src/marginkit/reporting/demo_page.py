"""The page of the demo: two sentences, the table, the differences and the reliability of each model."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from marginkit.records import Estimate
from marginkit.reporting.blocks import (
    Block,
    Chart,
    Code,
    Facts,
    Forest,
    Level,
    Page,
    Prose,
    Reliability,
    Section,
    Table,
    Verdict,
)
from marginkit.reporting.judged import bins_in_words, bins_of
from marginkit.reporting.numbers import in_words, number
from marginkit.reporting.run_page import footer
from marginkit.reporting.runs import read_record

_CONTROLS = {"reward_model": ("mmpo_rm", "bt"), "policy": ("mmpo", "dpo")}
_TRUE_UTILITY = ("sampled", "best_of")
_WORLD = (
    "A prompt asks for a dish; the true utility of any answer can be read off its text. So three things are known that "
    "real data never tells: how good an answer is, with what probability one is better than another, and how noisy the "
    "grades are. All models start from the same SFT model and see the same graded pairs in the same order."
)


def demo_page(told: Mapping[str, Any], folder: Path) -> Page:
    """The page of a demo.

    Args:
        told: `DemoResult.to_json`.
        folder: where its runs are.

    Returns:
        A page. What is better or worse is said only where the 95% interval leaves 0 out.
    """
    world, differences = told["world"], told["differences"]
    levels = [_level(differences[kind], told["measures"]) for kind in _CONTROLS]
    verdicts = [Verdict(level, said) for level, said in zip(levels, told["sentences"], strict=True)]
    once = "One seed, one kind of raters: --quality high | mixed | low and --seed ask again; docs/log.md has them all."
    sections = [
        _table(told),
        _differences(differences, told["measures"]),
        _reliability([row["name"] for row in told["rows"]], folder),
        _world(world),
        _repeat(world),
    ]
    lead = (
        f"{world['quality'].capitalize()} feedback, {world['size']} models, seed {world['seed']}: trained and judged "
        f"against the truth in {told['seconds']:.0f} seconds."
    )
    return Page("The built-in world", lead, [*verdicts, Verdict("note", once)], sections, footer())


def _level(differences: Mapping[str, Any], measures: Mapping[str, Any]) -> Level:
    """Good if something is better and nothing worse; a warning if something is worse."""
    signs = {name: measures[name]["better"] for name in differences}
    found = {name: Estimate.from_json(one) for name, one in differences.items()}
    better = any(signs[name] * one.low > 0 and signs[name] * one.high > 0 for name, one in found.items())
    worse = any(signs[name] * one.low < 0 and signs[name] * one.high < 0 for name, one in found.items())
    return "warning" if worse else "good" if better else "note"


def _table(told: Mapping[str, Any]) -> Section:
    names = list(told["measures"])
    rows = []
    for row in told["rows"]:
        own: list[str | Estimate] = []
        for name in names:
            found = Estimate.from_json(row[name]) if name in row else None
            own.append("-" if found is None else number(found.high) if name == "ece_floor" else found)
        rows.append([row["name"], *own, f"{row['seconds']:,.0f}"])
    heads = ("model", *(told["measures"][name]["words"] for name in names), "seconds")
    caption = "On held-out pairs and fresh answers; 95% intervals by resampling prompts"
    return Section("Five models", [Table(heads, rows, caption, tuple(range(1, len(heads))))], "models")


def _differences(differences: Mapping[str, Mapping[str, Any]], measures: Mapping[str, Any]) -> Section:
    """Paired differences on the same pairs and prompts; utilities have an axis of their own."""
    blocks: list[Block] = []
    utility = []
    for kind, (ours, control) in _CONTROLS.items():
        rows = []
        for name, one in differences[kind].items():
            if name in _TRUE_UTILITY:
                utility.append((f"{ours} - {control}", Estimate.from_json(one)))
            else:
                rows.append((measures[name]["words"], Estimate.from_json(one)))
        caption = f"{ours} - {control} on the same held-out pairs. Left is better, except in accuracy."
        blocks.append(Chart(Forest(rows, f"{ours} - {control}"), caption, in_words(rows)))
    caption = "True utility of its answers, difference on the same prompts. Right is better."
    blocks.append(Chart(Forest(utility, "utility (logits)"), caption, in_words(utility)))
    blocks.append(Prose("An interval that holds 0 is drawn grey: nothing is claimed there."))
    return Section("MMPO against hard labels", blocks, "differences")


def _reliability(names: Sequence[str], folder: Path) -> Section:
    blocks: list[Block] = []
    for name in names:
        record = read_record(folder / name)
        bins = bins_of(record.columns) if record.pairs is not None else []
        if bins:
            caption = f"{name}: right against said; below the dashed line it is too sure. Bars: pairs."
            blocks.append(Chart(Reliability(bins), caption, bins_in_words(bins)))
    return Section("Is their confidence right?", blocks or [Prose("No model has judged pairs.")], "calibration")


def _world(world: Mapping[str, Any]) -> Section:
    facts = [
        ("feedback", world["quality"]),
        ("graded prompts", f"{world['prompts']:,}"),
        ("gamma", f"{number(world['gamma'])} logits a grade"),
    ]
    return Section("What is known of this world", [Prose(_WORLD), Facts(facts)], "world")


def _repeat(world: Mapping[str, Any]) -> Section:
    words = ["marginkit", "demo"]
    for name in ("quality", "size", "seed"):
        words += [f"--{name}", str(world[name])]
    told = "The command; each model is a run in this folder, and `marginkit report RUN` makes its own page"
    return Section("How to repeat it", [Code(shlex.join(words), told)], "repeat")
