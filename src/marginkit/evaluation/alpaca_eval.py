"""AlpacaEval 2: annotations to win rates."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from marginkit.errors import BadInput
from marginkit.evaluation.bootstrap import Array, estimates, mean_of
from marginkit.evaluation.judgment_files import JudgedRow, Paths, read_rows
from marginkit.evaluation.length_controlled import (
    LengthControlled,
    difficulties,
    length_controlled,
    read_difficulty,
    read_gamed,
)
from marginkit.records import Estimate

FULL = 805


def is_switched(instruction: str, seed: int = 123) -> bool:
    """Whether AlpacaEval shows the judge the model's output first: a coin that lies in the instruction.

    Python's `random.Random("is_switched_outputs" + instruction + seed)`.

    Args:
        instruction: the text.
        seed: 123 upstream.

    Example:
        >>> is_switched("Name a fruit."), is_switched("Name a tree.")
        (True, False)

    Source: alpaca_eval src/alpaca_eval/annotators/base.py and utils.random_seeded_choice.
    """
    return random.Random(f"is_switched_outputs{instruction}{seed}").choices([False, True], k=1)[0]


def weighted_preference(p_first: float, p_second: float, switched: bool = False) -> float | None:
    """The preference in [1, 2] from the judge's probabilities: 2 says that the model's output is better.

    preference = 2 - p(m) / (p(m) + p(M)), and 3 - preference where the two were switched.

    Args:
        p_first: probability of the token for the output shown first (`m`); 0 where it is not among those sent.
        p_second: of the one shown second (`M`).
        switched: what `is_switched` says.

    Returns:
        None where neither token has a probability.

    Raises:
        BadInput: not probabilities.

    Example:
        >>> weighted_preference(0.2, 0.6), weighted_preference(0.2, 0.6, switched=True), weighted_preference(0, 0)
        (1.75, 1.25, None)
    """
    if not (0 <= p_first <= 1 and 0 <= p_second <= 1):
        raise BadInput(f"p_first={p_first}, p_second={p_second}: probabilities lie in [0, 1]")
    if p_first + p_second == 0:
        return None
    shown = 2 - p_first / (p_first + p_second)
    return 3 - shown if switched else shown


@dataclass(frozen=True, slots=True)
class Annotations:
    """One model against one baseline, as one annotator judged them, in the file's order.

    Args:
        model: `generator_2`.
        baseline: `generator_1`.
        annotator: who judged.
        instructions: `[row]`.
        preference: `[row]`, x = preference - 1 in [0, 1] (1: the model is better), NaN where there is none.
        length_1: `[row]`, characters of the baseline's output.
        length_2: `[row]`, of the model's.
    """

    model: str
    baseline: str
    annotator: str
    instructions: list[str]
    preference: Array
    length_1: Array
    length_2: Array


@dataclass(frozen=True, slots=True)
class AlpacaEval:
    """Win rates of a model, in percent.

    Args:
        model: who was judged.
        baseline: against whom.
        annotator: by whom.
        win_rate: mean preference, with the interval over instructions.
        standard_error: of the win rate, as upstream.
        discrete_win_rate: wins, and half of the draws.
        n_wins: preferences for the model.
        n_wins_base: for the baseline.
        n_draws: exactly in the middle.
        n_total: rows with a preference.
        nulls: rows without, left out.
        avg_length: mean characters of the model's outputs, cut to a whole number as upstream.
        length_controlled: at equal lengths.
        missing: instructions that the file lacks of AlpacaEval's 805.
    """

    model: str
    baseline: str
    annotator: str
    win_rate: Estimate
    standard_error: float
    discrete_win_rate: Estimate
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_total: int
    nulls: int
    avg_length: int
    length_controlled: LengthControlled | None
    missing: int

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, estimates as they are elsewhere; NaN becomes None."""
        counts = ("n_wins", "n_wins_base", "n_draws", "n_total", "nulls", "avg_length", "missing")
        controlled = self.length_controlled
        return {
            "model": self.model,
            "baseline": self.baseline,
            "annotator": self.annotator,
            "win_rate": self.win_rate.to_json(),
            "standard_error": None if math.isnan(self.standard_error) else self.standard_error,
            "discrete_win_rate": self.discrete_win_rate.to_json(),
            "length_controlled": None if controlled is None else controlled.to_json(),
            **{name: getattr(self, name) for name in counts},
        }


def read_annotations(path: str | Path) -> Annotations:
    """Read `annotations.json`: one model, one baseline, one annotator.

    Raises:
        BadInput: a key is missing, a preference lies outside [1, 2], or names differ within the file.
    """
    rows = read_rows(path)
    named = {key: _one_name(rows, key) for key in ("generator_2", "generator_1", "annotator")}
    return Annotations(
        named["generator_2"],
        named["generator_1"],
        named["annotator"],
        [row.text("instruction") for row in rows],
        np.asarray([_preference(row) for row in rows]),
        np.asarray([float(len(row.text("output_1"))) for row in rows]),
        np.asarray([float(len(row.text("output_2"))) for row in rows]),
    )


def _one_name(rows: Sequence[JudgedRow], key: str) -> str:
    first = rows[0].name(key)
    for row in rows:
        if row.name(key) != first:
            row.refuse(f"{key!r} is {row.name(key)!r}, above it is {first!r}; give one file for each")
    return first


def _preference(row: JudgedRow) -> float:
    if row.get("preference") is None:
        return math.nan
    value = row.number("preference")
    if value == 0:  # a draw in files of the first version
        return 0.5
    if not 1 <= value <= 2:
        row.refuse(f"'preference' is {value:g}; it lies between 1 (the baseline) and 2 (the model), or is null")
    return value - 1


def score_alpaca_eval(
    annotations: Annotations | str | Path,
    *,
    gamed: str | Path | None = None,
    difficulty: str | Path | None = None,
    instructions: Paths | None = None,
    unofficial: bool = False,
    refits: int = 0,
    resamples: int = 1000,
    seed: int = 0,
) -> AlpacaEval:
    """Win rate, standard error, discrete and length-controlled win rate of one model.

    With x = preference - 1, rows without a preference left out: win_rate = 100 mean x, standard_error = 100 sd(x) /
    sqrt(n) with ddof 1, discrete = 100 (wins + draws / 2) / n. The length-controlled rate is AlpacaEval's own only with
    its `df_gamed.csv`; else it is labelled LC-approx.

    Args:
        annotations: what `read_annotations` gave, or the file.
        gamed: `df_gamed.csv`.
        difficulty: `instruction_difficulty.csv`, for the better of the two approximations.
        instructions: a file with all instructions in the benchmark's order: difficulties are then joined on the
            instruction; else on the row's place, as upstream (see `difficulties`).
        unofficial: take other files than the published ones.
        refits: of the length-controlled rate's interval; 0 gives none.
        resamples: of the bootstrap over instructions.
        seed: of the bootstraps.

    Raises:
        BadInput: the files do not fit, or no row has a preference.

    Source: alpaca_eval src/alpaca_eval/metrics/winrate.py and helpers.py. Deviation: `avg_length` is that of the
    outputs in the annotations; upstream takes the file of outputs, which may hold a few more.
    """
    one = annotations if isinstance(annotations, Annotations) else read_annotations(annotations)
    here = ~np.isnan(one.preference)
    x = one.preference[here]
    if not len(x):
        raise BadInput(f"{one.model}: no row has a preference")
    discrete = np.where(x == 0.5, 0.5, x > 0.5)
    clusters = np.asarray(one.instructions)[here]
    asked = {"win": mean_of(100 * x), "discrete": mean_of(100 * discrete)}
    found = estimates(asked, clusters, resamples=resamples, seed=seed)
    error = 100 * float(np.std(x, ddof=1)) / math.sqrt(len(x)) if len(x) > 1 else math.nan
    return AlpacaEval(
        one.model,
        one.baseline,
        one.annotator,
        found["win"],
        error,
        found["discrete"],
        int((x > 0.5).sum()),
        int((x < 0.5).sum()),
        int((x == 0.5).sum()),
        len(x),
        int((~here).sum()),
        int(one.length_2.mean()),
        _controlled(one, gamed, difficulty, instructions, unofficial, refits, seed),
        max(0, FULL - len(one.instructions)),
    )


def _controlled(
    one: Annotations,
    gamed: str | Path | None,
    difficulty: str | Path | None,
    instructions: Paths | None,
    unofficial: bool,
    refits: int,
    seed: int,
) -> LengthControlled | None:
    if one.model == one.baseline:
        return LengthControlled(50.0, "LC", "the baseline itself: 50 by construction", 0.0, None, None, 0, {})
    rows = None if gamed is None else read_gamed(gamed, unofficial=unofficial)
    by_place, official = ({}, False) if rows is None else (dict(rows.difficulty), rows.official)
    if difficulty is not None:
        given, published = read_difficulty(difficulty, unofficial=unofficial)
        by_place = by_place or given
        official = official and published
    if not by_place and instructions is not None:
        raise BadInput("instructions join difficulties: give df_gamed.csv or instruction_difficulty.csv beside them")
    ordered = None if instructions is None else [row.text("instruction") for row in read_rows(instructions)]
    known = difficulties(by_place, one.instructions, ordered) if by_place else None
    delta = one.length_1 - one.length_2
    if rows is None and (not np.any(delta != delta[0]) or np.isfinite(one.preference).sum() < 2):
        return None  # nothing to control for
    found = length_controlled(
        one.preference,
        one.length_1,
        one.length_2,
        difficulty=known,
        gamed=rows,
        official=official,
        refits=refits,
        seed=seed,
    )
    return found if ordered is None else replace(found, says=f"{found.says}; difficulties joined on the instruction")
