"""The page of `evidence.py`: tables, and the sentences that follow from counts alone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from evidence_cells import BY_TRAINING, EARLY, END, OTHER, TWIN, VOTES
from evidence_figures import METRICS, File, outcome
from evidence_later import BEYOND, LOG_ODDS

from marginkit.records import Estimate

LOCAL = ("alpacaeval_graded", "tulu2_bon_graded")
COMPARED = ("bt_smooth", "bt_margin", "bt_scaled", "aplot", "mmpo_rm")
METHODS = ("bt", "bt_smooth", "bt_margin", "bt_scaled", TWIN, "aplot", "mmpo_rm")
ASKED = {
    "accuracy": ("accuracy", False),
    "NLL": ("nll", False),
    "Brier": ("brier", False),
    "ECE": ("ece", False),
    "NLL at T": ("nll", True),
    "ECE at T": ("ece", True),
}
READING = ("<!-- reading: written by hand, kept when the page is written anew -->", "<!-- end of reading -->")


def short(name: str) -> str:
    """A file's name in a table; a dagger where its data is for local use alone."""
    base = name.removesuffix(LOG_ODDS)
    words = re.sub(r"(_human)?_(graded|pairs)$", "", base) + ("†" if base in LOCAL else "")
    return words if base == name else f"{words}, log-odds"


def number(value: float | Estimate, digits: int = 3, *, sign: bool = False) -> str:
    """A number without its leading zero, and its interval; bold where a difference leaves 0 out."""
    plus = "+" if sign else ""

    def bare(one: float) -> str:
        return f"{one:{plus}.{digits}f}".replace("0.", ".", 1) if abs(one) < 1 else f"{one:{plus}.{digits}f}"

    if not isinstance(value, Estimate):
        return bare(value)
    told = f"{bare(value.value)} [{bare(value.low)}, {bare(value.high)}]"
    return f"**{told}**" if sign and outcome(value) != "level" else told


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def counted(
    files: Sequence[File], rule: str, method: str, metric: str, cooled: bool = False, *, against: str | None = None
) -> dict[str, list[str]]:
    """Better, level, worse -> files, by the interval of the difference to BT (or to another)."""
    found: dict[str, list[str]] = {"better": [], "level": [], "worse": []}
    for file in files:
        difference = file.difference(rule, method, metric, cooled, against)
        found[outcome(difference, more_is_better=metric == "accuracy")].append(short(file.name))
    return found


# -- the top of the page


def losses(files: Sequence[File]) -> str:
    """Where MMPO's difference to BT, or to smoothing, is on the wrong side: by interval, and of NLL by value."""
    lines = []
    for against, words in (("bt", "BT"), ("bt_smooth", "label smoothing")):
        for rule in (EARLY, END):
            for name, (metric, cooled) in ASKED.items():
                found = {short(file.name): file.difference(rule, "mmpo_rm", metric, cooled, against) for file in files}
                more = metric == "accuracy"
                worse = [file for file, one in found.items() if outcome(one, more_is_better=more) == "worse"]
                told = [f"{file} {number(found[file], sign=True).strip('*')}" for file in worse]
                if name == "NLL":
                    told += [
                        f"({file} {number(one, sign=True)})"
                        for file, one in found.items()
                        if one.value > 0 and file not in worse
                    ]
                if told:
                    lines.append(f"- against {words}, {rule}, {name}: {'; '.join(told)}")
    return "\n".join(lines) or "- nowhere"


def summary(files: Sequence[File]) -> str:
    """Better / level / worse than BT by interval, a row a method and rule, and what each is by itself."""
    rows = []
    for rule in (END, EARLY):
        rows.append(["bt", rule, *[""] * len(ASKED), *_alone(files, rule, "bt")])
        for method, against in (*((name, None) for name in COMPARED), ("mmpo_rm", "bt_smooth")):
            found = [counted(files, rule, method, metric, cooled, against=against) for metric, cooled in ASKED.values()]
            cells = [" / ".join(str(len(part)) for part in one.values()) for one in found]
            alone = ["", ""] if against else _alone(files, rule, method)
            rows.append([f"{method} against {against}" if against else method, rule, *cells, *alone])
    return table(["method", "rule", *ASKED, "inside floor (near)", "NLL below ln 2"], rows)


def _alone(files: Sequence[File], rule: str, method: str) -> list[str]:
    floors = [file.floor(rule, method) for file in files]
    knows = sum(file.level(rule, method, "nll").high < math.log(2) for file in files)
    return [f"{sum(floor.inside for floor in floors)} ({sum(floor.near for floor in floors)})", str(knows)]


def claims(files: Sequence[File]) -> str:
    """The sentences on the claims that counting can write."""
    count = len(files)

    def says(rule: str, method: str, metric: str, against: str | None = None) -> str:
        sign = -1 if metric == "accuracy" else 1
        lower = sum(sign * file.difference(rule, method, metric, against=against).value < 0 for file in files)
        told = counted(files, rule, method, metric, against=against)
        by = "; ".join(
            f"{key} in {len(told[key])} ({', '.join(told[key])})" for key in ("better", "worse") if told[key]
        )
        return f"better by value in {lower} of {count}; by interval {by or 'level in all'}"

    inside = {method: [file.floor(END, method) for file in files] for method in ("bt", "bt_smooth", "mmpo_rm")}
    floors = "; ".join(
        f"{name} inside in {sum(one.inside for one in found)}, inside or near in {sum(one.near for one in found)}"
        for name, found in inside.items()
    )
    worse = sum(file.difference(END, "bt_margin", "ece").value > 0 for file in files)
    coin = "; ".join(f"{name} {_alone(files, END, name)[1]}" for name in inside)
    points = {
        "(a) to the end, NLL of MMPO against BT": says(END, "mmpo_rm", "nll"),
        "(a) to the end, ECE and the noise floor": floors,
        "(a) to the end, accuracy of MMPO against BT": says(END, "mmpo_rm", "accuracy"),
        "(a) to the end, files in which NLL is below that of a coin, by interval": coin,
        "(b) to the end, NLL of smoothing against BT": says(END, "bt_smooth", "nll"),
        "(b) to the end, NLL of MMPO against smoothing": says(END, "mmpo_rm", "nll", "bt_smooth"),
        "(b) stopped early, NLL of MMPO against smoothing": says(EARLY, "mmpo_rm", "nll", "bt_smooth"),
        "(c) to the end, ECE of Llama-2 margins against BT": f"worse by value in {worse} of {count}; "
        + says(END, "bt_margin", "ece"),
        "(c) to the end, NLL of Llama-2 margins against BT": says(END, "bt_margin", "nll"),
        "(d) stopped early, NLL of MMPO against BT": says(EARLY, "mmpo_rm", "nll"),
        "(d) the same with the gamma chosen for the end": says(EARLY, OTHER, "nll"),
        "(d) the same, accuracy": says(EARLY, OTHER, "accuracy"),
    }
    return table(["claim", "counted"], points.items())


# -- tables a rule


def levels(files: Sequence[File], rule: str) -> str:
    """What each method reached."""
    rows = []
    for file in files:
        for method in METHODS:
            floor, cool = file.floor(rule, method), file.floor(rule, method, True)
            heat = [cell.temperature[f"{rule}/{method}"] for cell in file.cells]
            bound = file.at_bound(rule, method)
            rows.append(
                [
                    short(file.name),
                    method,
                    *(number(file.level(rule, method, metric)) for metric in ("accuracy", "nll", "brier")),
                    f"{number(floor.ece)} ({number(floor.mean)}, {number(floor.high)})",
                    number(file.level(rule, method, "ece")),
                    f"{np.median(heat):.2f}" + (f" ({bound} at bound)" if bound else ""),
                    number(file.level(rule, method, "nll", True)),
                    f"{number(cool.ece)} ({number(cool.mean)}, {number(cool.high)})",
                ]
            )
    columns = [
        "accuracy",
        "NLL",
        "Brier",
        "ECE (floor: mean, 95%)",
        "debiased ECE",
        "T",
        "NLL at T",
        "ECE at T (floor)",
    ]
    return table(["file", "method", *columns], rows)


def differences(files: Sequence[File], rule: str, methods: Sequence[str] = COMPARED) -> str:
    """Each method minus BT."""
    rows = [
        [
            short(file.name),
            method,
            *(number(file.difference(rule, method, metric, cooled), sign=True) for metric, cooled in ASKED.values()),
        ]
        for file in files
        for method in methods
        if file.has(rule, method)
    ]
    return table(["file", "method", *ASKED], rows)


# -- gamma, lengths, data


def gamma_curve(files: Sequence[File]) -> str:
    """NLL along the grid under both rules."""
    size = len(files[0].cells[0].facts["grid"])
    rows = []
    for file in files:
        for rule in (END, EARLY):
            grid = [file.drawn(rule, f"gamma {place}")["nll"][0] for place in range(size)]
            best = f"gamma {int(np.argmin(grid))}"
            told = [
                f"**{number(value)}**" if place == int(np.argmin(grid)) else number(value)
                for place, value in enumerate(grid)
            ]
            rows.append(
                [
                    short(file.name),
                    rule,
                    *told,
                    number(file.drawn(rule, "bt")["nll"][0]),
                    number(file.difference(rule, "mmpo_rm", "nll", against=best), sign=True),
                ]
            )
    names = [f"g{place + 1}" for place in range(size)]
    return table(["file", "rule", *names, "bt", "auto - best of the grid"], rows)


def chosen(files: Sequence[File]) -> str:
    """Which gammas were chosen, and what the other rule's would have done."""
    rows = []
    for file in files:
        for rule in (END, EARLY):
            told = [cell.facts["gamma"][rule] for cell in file.cells]
            values = ", ".join(f"{one['value']:.3g}" + ("^" if one["edge"] else "") for one in told)
            rows.append(
                [
                    short(file.name),
                    rule,
                    str(told[0]["source"]),
                    values,
                    *(
                        number(file.difference(rule, OTHER, metric, against="mmpo_rm"), sign=True)
                        for metric in ("nll", "accuracy")
                    ),
                ]
            )
    titles = ["NLL, other rule's gamma - own", "accuracy, other - own"]
    return table(["file", "rule", "source", "gamma of each seed (^: edge of the grid)", *titles], rows)


def lengths(files: Sequence[File]) -> str:
    """At the end of trainings of several lengths."""
    plan = files[0].cells[0].facts["plan"]
    every = sorted([*plan["lengths"], plan["epochs"]])
    rows = []
    for file in files:
        for epochs in every:
            rule = END if epochs == plan["epochs"] else f"{epochs} epochs"
            floors = [file.floor(rule, method) for method in ("bt", "bt_smooth", "mmpo_rm")]
            rows.append(
                [
                    short(file.name),
                    str(epochs),
                    number(file.level(rule, "bt", "nll")),
                    *(number(file.difference(rule, name, "nll"), sign=True) for name in ("bt_smooth", "mmpo_rm")),
                    number(file.difference(rule, "mmpo_rm", "accuracy"), sign=True),
                    *(number(floor.ece) + ("" if floor.inside else " out") for floor in floors),
                ]
            )
    columns = ["NLL of bt", "bt_smooth - bt", "mmpo_rm - bt", "accuracy, mmpo_rm - bt"]
    return table(["file", "epochs", *columns, "ECE of bt", "of bt_smooth", "of mmpo_rm"], rows)


def cures(files: Sequence[File]) -> str:
    """MMPO trained to the end, without a temperature, against what else heals a Bradley-Terry model."""
    own = (END, "mmpo_rm", False)
    others = {
        "BT stopped early": (EARLY, "bt", False),
        "BT to the end, at T": (END, "bt", True),
        "BT stopped early, at T": (EARLY, "bt", True),
    }
    rows = [
        [short(file.name), name, *(number(file.between(own, other, metric), sign=True) for metric in METRICS)]
        for file in files
        for name, other in others.items()
    ]
    return table(["file", "MMPO to the end minus", "accuracy", "NLL", "Brier", "ECE"], rows)


def other_targets(files: Sequence[File]) -> str:
    """MMPO on the votes where there are some, and with gamma by training where raters gave it."""
    rows = []
    for file in files:
        rated = file.cells[0].facts["gamma"][END]["source"] != "training"
        for method, there in ((VOTES, file.has(END, VOTES)), (BY_TRAINING, rated)):
            for rule in (END, EARLY) if there else ():
                told = [
                    number(file.difference(rule, method, metric), sign=True) for metric in ("accuracy", "nll", "ece")
                ]
                against = number(file.difference(rule, method, "nll", against="mmpo_rm"), sign=True)
                rows.append([short(file.name), method, rule, *told, against])
    return table(["file", "method", "rule", "accuracy - bt", "NLL - bt", "ECE - bt", "NLL - mmpo_rm's"], rows)


def beyond(files: Sequence[File]) -> str:
    """NLL at gammas larger than those of the grid, whose last is g7."""
    rows = []
    for file in files:
        last = f"gamma {len(file.cells[0].facts['grid']) - 1}"
        for rule in (END, EARLY):
            names = [last, *(f"gamma at {times:g}" for times in BEYOND)]
            values = [file.drawn(rule, name)["nll"][0] for name in names]
            best = names[int(np.argmin(values))]
            told = [number(value) for value in [*values, file.drawn(rule, "bt")["nll"][0]]]
            compared = [("mmpo_rm", "bt"), (best, "mmpo_rm"), (best, "bt")]
            differences = [
                number(file.difference(rule, one, "nll", against=other), sign=True) for one, other in compared
            ]
            rows.append([short(file.name), rule, *told, *differences])
    names = ["g7 (3)", *(f"{times:g}" for times in BEYOND)]
    return table(["file", "rule", *names, "bt", "auto - bt", "best of these - auto", "best of these - bt"], rows)


def data(files: Sequence[File]) -> str:
    """How much of everything there was, and where BT's dev NLL was lowest."""

    def told(file: File, name: str) -> str:
        values = [cell.facts[name] for cell in file.cells]
        return str(values[0]) if len(set(values)) == 1 else f"{min(values)}-{max(values)}"

    names = ("train_prompts", "train_pairs", "train_ties", "dev_pairs")
    rows = []
    for file in files:
        loss: Any = np.mean([cell.facts["bt_loss"] for cell in file.cells], 0)
        counts = [told(file, name) for name in names]
        curve = [told(file, "bt_best_epoch"), f"{loss[0]:.3f}, {loss[1]:.3f}"]
        rows.append([short(file.name), *counts, str(file.pairs), file.drawn_from, *curve])
    columns = ["training prompts", "training pairs", "of them ties", "dev pairs", "test pairs", "a resample draws"]
    return table(["file", *columns, "BT's best epoch", "BT's loss at 90% and the end"], rows)
