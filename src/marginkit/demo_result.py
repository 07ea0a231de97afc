"""What the demo found: its options, its table, and two sentences that say what the numbers say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marginkit.kitchen import HIGHEST
from marginkit.records import Estimate


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the demo is run with, fixed before any result is seen.

    Args:
        quality: of the feedback: high, mixed or low.
        size: of the models: small, medium or large.
        seed: of the world, the raters and the models.
        out: folder for data and runs; default the first free runs/demo-N.
        prompts: graded prompts to train on, four responses each.
        demonstrations: prompts with one ungraded response, for SFT.
        test: graded prompts held out.
        samples: answers drawn for each test prompt.
    """

    quality: str = "mixed"
    size: str = "medium"
    seed: int = 0
    out: str | Path | None = None
    prompts: int = 600
    demonstrations: int = 4800
    test: int = 300
    samples: int = 4


@dataclass(frozen=True, slots=True)
class Row:
    """One trained model: its name, what was measured and how long it took; `utility` is absent for what has none."""

    name: str
    estimates: Mapping[str, Estimate]
    seconds: float


MEASURES = {
    "accuracy": "accuracy",
    "nll": "NLL (nats)",
    "ece": "ECE",
    "ece_floor": "ECE floor",
    "prob_error_label": "|P - known P|",
    "sampled": "utility, sampled",
    "best_of": "utility, best of {}",
}


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo found.

    Args:
        options: what it was run with.
        rows: sft, dpo, mmpo, bt, mmpo_rm.
        differences: MMPO - control on the same pairs or prompts: policy and reward_model, each by measure.
        gamma: logits that one grade is worth in this world.
        out: where data, runs and tables are.
        seconds: wall time of all of it.
    """

    options: DemoOptions
    rows: Sequence[Row]
    differences: Mapping[str, Mapping[str, Estimate]]
    gamma: float
    out: Path
    seconds: float

    @property
    def title(self) -> str:
        """What the table is of."""
        o = self.options
        return (
            f"built-in world: {o.quality} feedback, {o.size} models, seed {o.seed}, gamma {self.gamma:.3f} logits a "
            f"grade, highest utility {HIGHEST:g}; {self.seconds:.0f} seconds, kept in {self.out}"
        )

    @property
    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Column names, and one row of words a model; ± is half the 95% interval, whose ends are in `to_json`."""
        heads = [name.format(self.options.samples) for name in MEASURES.values()]
        rows = [
            (row.name, *(_cell(name, row.estimates.get(name)) for name in MEASURES), f"{row.seconds:.0f}")
            for row in self.rows
        ]
        return ("", *heads, "seconds"), rows

    @property
    def page(self) -> Path:
        """Where its page is; its Markdown lies beside it."""
        return self.out / "report.html"

    @property
    def sentences(self) -> tuple[str, str]:
        """What it shows: one sentence on the reward models, one on the policies."""
        return (
            sentence("Reward models", "BT", self.differences["reward_model"]),
            sentence("Policies", "DPO", self.differences["policy"]),
        )

    def to_json(self) -> dict[str, Any]:
        """The machine-readable result."""
        o = self.options
        return {
            "world": {"quality": o.quality, "size": o.size, "seed": o.seed, "gamma": self.gamma, "prompts": o.prompts},
            "rows": [
                {"name": row.name, "seconds": round(row.seconds, 1)}
                | {name: found.to_json() for name, found in row.estimates.items()}
                for row in self.rows
            ],
            "measures": {
                name: {"words": words.format(o.samples), "better": _WORDS.get(name, ("", 0))[1]}
                for name, words in MEASURES.items()
            },
            "differences": {
                kind: {name: found.to_json() for name, found in by_name.items()}
                for kind, by_name in self.differences.items()
            },
            "sentences": list(self.sentences),
            "out": str(self.out),
            "seconds": round(self.seconds, 1),
        }


def _cell(name: str, found: Estimate | None) -> str:
    if found is None or math.isnan(found.value):
        return "-"
    if name == "ece_floor":
        return f"{found.high:.3f}"
    digits = 2 if name in ("sampled", "best_of") else 3
    if math.isnan(found.low):
        return f"{found.value:.{digits}f}"
    return f"{found.value:.{digits}f} ±{(found.high - found.low) / 2:.{digits}f}"


# -- In words

_WORDS = {
    # measure: (its name, the sign that is better)
    "prob_error_label": ("distance from the known probability", -1),
    "nll": ("NLL", -1),
    "accuracy": ("accuracy", 1),
    "sampled": ("true utility of sampled answers", 1),
    "best_of": ("true utility of the answers picked", 1),
}


def sentence(what: str, control: str, differences: Mapping[str, Estimate]) -> str:
    """One sentence from the paired differences MMPO - control; nothing in it but what the numbers say.

    Better or worse where the 95% interval leaves 0 out, not distinguishable where it does not.

    Args:
        what: which models.
        control: what MMPO is held against.
        differences: measure -> MMPO - control.

    Example:
        >>> sentence("Policies", "DPO", {"nll": Estimate(-0.05, -0.08, -0.02, 900, 300)})
        'Policies: against DPO, MMPO is better in NLL (-0.050 [-0.080, -0.020]).'
    """
    parts: dict[str, list[str]] = {"better": [], "worse": [], "not distinguishable": []}
    for name, (words, good) in _WORDS.items():
        found = differences.get(name)
        if found is None or math.isnan(found.value):
            continue
        low, high = sorted((good * found.low, good * found.high))
        kind = "better" if low > 0 else "worse" if high < 0 else "not distinguishable"
        parts[kind].append(f"{words} ({found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}])")
    told = [f"{kind} in {', '.join(named)}" for kind, named in parts.items() if named]
    return f"{what}: against {control}, MMPO is {'; '.join(told)}."
