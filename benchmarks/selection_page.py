"""The page of benchmarks/selection.py: tables of differences, paired by seed, with intervals."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata, t

RECIPES = ("bt", "mmpo_rm")
SHARES = (0.1, 0.2, 0.4)

Draws = list[dict[str, dict[str, list[float]]]]
"""A seed: name -> accuracy, nll, raw_nll -> a value a recipe."""


def interval(values: Sequence[float], sign: bool = True) -> str:
    """Mean and 95% interval over seeds (Student's t)."""
    mean = statistics.fmean(values)
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    form = "+.3f" if sign else ".3f"
    mark = "" if not sign or mean - half <= 0 <= mean + half else " \\*"
    return f"{mean:{form}} [{mean - half:{form}}, {mean + half:{form}}]{mark}"


def values_of(draws: Draws, name: str, field: str, recipe: int) -> list[float]:
    """One number a seed."""
    return [found[name][field][recipe] for found in draws]


def difference(draws: Draws, name: str, base: str, field: str, recipe: int) -> str:
    """Paired by seed."""
    missing = sum(name not in found for found in draws)
    if missing:
        return f"refused, or under 5% left, in {missing} of {len(draws)}"
    left, right = (values_of(draws, one, field, recipe) for one in (name, base))
    return interval([a - b for a, b in zip(left, right, strict=True)])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def page_of(title: str, methods: Sequence[str], told: list[dict[str, Any]], sizes: str) -> list[str]:
    """The section of one data set."""
    draws, lengths, tilted = ([one[name] for one in told] for name in ("found", "length", "tilted"))
    lines = [f"## {title}", "", sizes, ""]
    for number, recipe in enumerate(RECIPES):
        full = [interval(values_of(draws, "all pairs", field, number), False) for field in ("accuracy", "nll")]
        lines += [f"**{recipe}**: all pairs: accuracy {full[0]}, NLL {full[1]}. At each share: accuracy and NLL minus"]
        lines += ["those of a random choice of the same size; the row of random is minus all pairs.", ""]
        rows = []
        for name in methods:
            row = [name]
            for share in SHARES:
                base = "all pairs" if name == "random" else f"random @ {share:g}"
                row += [difference(draws, f"{name} @ {share:g}", base, field, number) for field in ("accuracy", "nll")]
            largest = f"{name} @ {SHARES[-1]:g}"
            row += [difference(draws, largest, "all pairs", field, number) for field in ("accuracy", "nll")]
            kept = [found[f"{name} @ 0.2"] for found in lengths if f"{name} @ 0.2" in found]
            row.append(f"{statistics.fmean(kept):.2f}" if kept else "")
            rows.append(row)
        head = ["method", *(f"{what}, {share:.0%}" for share in SHARES for what in ("accuracy", "NLL"))]
        head += [f"accuracy, {SHARES[-1]:.0%} - all", f"NLL, {SHARES[-1]:.0%} - all", "length, 20%"]
        lines += table(head, rows)
        others = list(dict.fromkeys(name for found in draws for name in found if name.startswith(("pairing", "clean"))))
        rows = [
            [name, *(difference(draws, name, "all pairs", field, number) for field in ("accuracy", "nll", "raw_nll"))]
            for name in others
        ]
        base_name = "all pairs" if not any(name.startswith("pairing") for name in others) else "all best/worst pairs"
        lines += table([f"{recipe}, minus {base_name}", "accuracy", "NLL", "NLL, no temperature"], rows)
    rows = []
    for what in ("DCRM", "margin", "edits"):
        row = [f"mean {what}"]
        for field in ("accuracy", "nll"):
            found = [correlation(sets, what, field) for sets in tilted]
            row.append(interval(found))
        rows.append(row)
    lines += [
        f"Spearman correlation over {len(tilted[0])} sets of a fifth of the pairs each, within a seed, of what a set"
    ]
    lines += ["is like with what training on it led to (mean of the two recipes):", ""]
    return lines + table(["of the set", "with accuracy", "with NLL"], rows)


def correlation(sets: list[dict[str, float]], what: str, field: str) -> float:
    """Spearman's, over the sets of one seed."""
    return float(np.corrcoef(*(rankdata([one[name] for one in sets]) for name in (what, field)))[0, 1])


PREFACE = [
    "# Selection and pairing, measured",
    "Written by `python benchmarks/selection.py --files ultrafeedback_pairs.jsonl arenabench_graded.jsonl`; what",
    "we make of it is in [the log](log.md), what the methods are in [selection](selection.md).",
    "",
    "- A linear head on frozen embeddings (hashed words in the world, MiniLM on files), 40 epochs, the best by dev",
    "  loss. It is no 7B policy trained with DPO: measured is whether the *pairs* teach more, not what papers claim.",
    "- 95% intervals over seeds (Student's t), a seed being another world or another split of the file. Differences",
    "  are paired by seed; \\* marks an interval without 0. There are some hundred: a few are marked by chance.",
    "- NLL is at the temperature that fits the dev pairs. In the world it is against the known probabilities.",
    "- *Length, 20%*: mean characters of the pairs kept, divided by those of all pairs.",
    "- The explicit margin is the data's own grade gap, which also makes the labels, unless it says cross-fitted.",
    "  DCRM's formula is as recalled; its r_D is divided by its standard deviation. M_AP takes the margin of the",
    "  pair, which is that of best and worst here.",
    "- The policies are two-layer models made on the spot: SFT on responses, and its DPO on a quarter as many pairs.",
    "  They stand in for a real policy (implicit and dual margins, p_D, IFD) and are no more than that.",
    "- The files' policies learned little (6.4 and 6.6 nats a token after SFT; the world's 1.7): their margins say",
    "  mostly what length says.",
    "- Softening says nothing to bt, whose label is hard. *Refused*: see the log.",
    "",
]
