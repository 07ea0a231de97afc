"""Grades freed of what should not move them: length, place, verbosity, source; each with its measure before and after.

Every adjustment takes off a fitted function of a response (or of a pair's two places), so that only differences inside
a prompt matter: utilities are compared with the mean of their prompt, gaps of pairs are differences already.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, diags
from scipy.stats import spearmanr

from marginkit.data.graded import Grades, pairs_inside
from marginkit.data.judge_grader import shown_first
from marginkit.data.options import checked
from marginkit.data.smoothing import lowess
from marginkit.errors import BadInput

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
VERBOSITY_GRID = (0.0, 0.01, *(round(0.025 * step, 3) for step in range(1, 39)))
"""ArmoRM's grid of lambda: 0, .01, .025, .05 ... .95."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What an adjustment is fitted on: utilities of responses, or gaps of pairs, those that are graded.

    Args:
        values: [n] logits.
        left: [n] the response, or the chosen one, as an index into all responses.
        right: [n] the rejected one; None where the rows are responses.
        prompt: [n] which group a row is in.
        place: [n] where in `Grades.values` a row is.
        starts: [group + 1] where the responses of each group begin.
        lengths: [response] characters, at least 1.
    """

    values: Array
    left: Indices
    right: Indices | None
    prompt: Indices
    place: Indices
    starts: Indices
    lengths: Array

    def inside(self, feature: Array) -> Array:
        """A feature of responses as differences: of a pair's two, or from the mean of the prompt."""
        own = feature[self.left]
        return self.centred(own) if self.right is None else own - feature[self.right]

    def centred(self, own: Array) -> Array:
        """Rows less the mean of their prompt."""
        total, count = np.bincount(self.prompt, own), np.bincount(self.prompt)
        return np.asarray(own - (total / np.maximum(count, 1))[self.prompt])


def rows_of(grades: Grades) -> Rows:
    """The graded rows of grades; a prob counts as its logit, one of 0 or 1 as one of a millionth."""
    sizes: list[int] = []
    lengths: list[int] = []
    pairs: list[tuple[int, int, int]] = []
    for at, group in enumerate(grades.groups):
        sizes.append(len(group.responses))
        lengths += [max(len(response.text), 1) for response in group.responses]
        if grades.kind != "utility":
            pairs += [(at, pair.chosen, pair.rejected) for pair in group.pairs]
    starts, length = np.cumsum([0, *sizes]), np.array(lengths, dtype=float)
    place = np.flatnonzero(~np.isnan(grades.values))
    values = grades.values[place]
    if grades.kind == "utility":
        return Rows(values, place, None, np.searchsorted(starts, place, side="right") - 1, place, starts, length)
    if grades.kind == "prob":
        bounded = np.clip(values, 1e-6, 1 - 1e-6)
        values = np.log(bounded) - np.log1p(-bounded)
    prompt, chosen, rejected = np.array(pairs, dtype=np.int64).reshape(-1, 3)[place].T
    first = starts[prompt]
    return Rows(values, first + chosen, first + rejected, prompt, place, starts, length)


# -- The adjustments: rows and a feature in, bias of each row out


def linear_bias(values: Array, feature: Array) -> tuple[Array, float]:
    """Slope * feature, by least squares through the origin; both are differences already.

    Example:
        >>> bias, slope = linear_bias(np.array([1.0, -2.0, 1.0]), np.array([0.5, -1.0, 0.5]))
        >>> bias.tolist(), slope
        ([1.0, -2.0, 1.0], 2.0)
    """
    power = float(feature @ feature)
    slope = float(feature @ values) / power if power > 0 else 0.0
    return slope * feature, slope


def tanh_length(difference: Array, scale: float | None = None) -> Array:
    """AlpacaEval's feature of length: tanh(difference / standard deviation), 0 where lengths are equal.

    Example:
        >>> tanh_length(np.array([0.0, 100.0, -100.0]), 100.0).round(3)
        array([ 0.   ,  0.762, -0.762])
    """
    width = float(np.std(difference)) if scale is None else scale
    return np.tanh(difference / width) if width > 0 else np.zeros_like(difference)


def smallest_correction(values: Array, verbosity: Array, *, limit: float = 0.03) -> float:
    """ArmoRM's lambda: the first of the grid with Spearman(values - lambda * verbosity, verbosity) <= limit, else 1.

    Source: ArmoRM, where both are rewards on one scale; `debias` divides both by their standard deviation first.

    Example:
        >>> smallest_correction(np.array([1.0, 2.0, 3.0]), np.array([3.0, 1.0, 2.0]))
        0.0
    """
    for weight in VERBOSITY_GRID:
        left = values - weight * verbosity
        if np.ptp(left) == 0 or float(spearmanr(left, verbosity).statistic) <= limit:
            return float(weight)
    return 1.0


Adjusted = tuple[Array, dict[str, Any]]


def _length(grades: Grades, rows: Rows, *, log: bool = True) -> Adjusted:
    length = rows.lengths
    bias, slope = linear_bias(_compared(rows), rows.inside(np.log(length) if log else length))
    return bias, {"slope": slope, "of": "log characters" if log else "characters"}


def _length_lowess(grades: Grades, rows: Rows, *, fraction: float = 0.5, rounds: int = 50) -> Adjusted:
    """The curve and the level of each prompt in turns, from a straight line on, until they settle."""
    if rows.right is not None:
        raise BadInput("debias=length_lowess needs utilities of responses; for pairs use length or length_tanh")
    x = np.log(rows.lengths)[rows.left]
    _, slope = linear_bias(_compared(rows), rows.centred(x))
    curve = slope * x
    for _ in range(int(rounds)):
        level = rows.values - curve - rows.centred(rows.values - curve)
        before, curve = curve, lowess(x, rows.values - level, fraction=fraction)
        if float(np.abs(rows.centred(curve - before)).mean()) <= 1e-3 * float(np.abs(rows.centred(curve)).mean()):
            break
    return rows.centred(curve), {"fraction": fraction, "of": "log characters"}


def _length_tanh(grades: Grades, rows: Rows, *, phi: float | None = None) -> Adjusted:
    if rows.right is None:
        raise BadInput("debias=length_tanh needs gaps of pairs; for utilities use length or length_lowess")
    if phi is not None and not isinstance(phi, int | float):
        raise BadInput(f"debias=length_tanh: phi={phi!r}: must be a number")
    feature = tanh_length(rows.inside(rows.lengths))
    bias, fitted = linear_bias(rows.values, feature)
    return (bias, {"phi": fitted}) if phi is None else (phi * feature, {"phi": phi})


def _position(grades: Grades, rows: Rows) -> Adjusted:
    """Share of comparisons with chosen shown first, less those with rejected: 0 where both orders were asked."""
    if rows.right is None:
        raise BadInput("debias=position needs gaps of pairs (how=votes or judge_probs): a utility has no place")
    first = []
    for group in grades.groups:
        shown: dict[tuple[int, int], list[float]] = {}
        for c in group.comparisons:
            if (at := shown_first(c)) is not None:
                lead = 1.0 if at == c.i else -1.0
                shown.setdefault((c.i, c.j), []).append(lead)
                shown.setdefault((c.j, c.i), []).append(-lead)
        first += [float(np.mean(shown.get((pair.chosen, pair.rejected), [0.0]))) for pair in group.pairs]
    feature = np.array(first)[rows.place]
    if not feature.any():
        raise BadInput("debias=position: no pair was shown in one order only, as the order of a comparison would say")
    bias, liking = linear_bias(rows.values, feature)
    return bias, {"liking for the first place": liking, "pairs of one order": int((feature != 0).sum())}


def _verbosity(grades: Grades, rows: Rows, *, aspect: str = "verbosity", limit: float = 0.03) -> Adjusted:
    said = np.array([r.aspects.get(aspect, np.nan) for group in grades.groups for r in group.responses], dtype=float)
    feature = rows.inside(said)
    if np.isnan(feature).any():
        held = sorted({name for group in grades.groups for r in group.responses for name in r.aspects})
        raise BadInput(
            f"debias=verbosity: a response has no aspect {aspect!r} (the data has {', '.join(held) or 'no aspects'}); "
            "name another aspect, or use length"
        )
    values, spread = _compared(rows), float(np.std(feature))
    unit = float(np.std(values)) / spread if spread > 0 else 0.0
    weight = smallest_correction(values, unit * feature, limit=limit) if unit else 0.0
    return weight * unit * feature, {"lambda": weight, "aspect": aspect}


def _source(grades: Grades, rows: Rows, *, least: float = 20) -> Adjusted:
    """One effect for each model that wrote a response, by least squares on differences.

    Models seen fewer than `least` times share one effect: of a model seen once it would be the grade itself.
    """
    names = np.array([response.model or "(not named)" for group in grades.groups for response in group.responses])
    seen = Counter(names[rows.left if rows.right is None else np.r_[rows.left, rows.right]].tolist())
    rare = {name for name, count in seen.items() if count < least}
    models, of = np.unique(["(rare)" if name in rare else name for name in names.tolist()], return_inverse=True)
    if len(models) < 2:
        raise BadInput(
            f"debias=source: fewer than two models wrote {least:g} graded responses or more ({len(seen)} are named, "
            f"{len(rare)} of them rarer); what is left would be the grades themselves"
        )
    design = _dummies(of, rows, len(models))
    normal = (design.T @ design).toarray() + 1e-6 * np.eye(len(models))
    effect = np.linalg.solve(normal, design.T @ _compared(rows))
    effect -= np.average(effect, weights=np.bincount(of[rows.left], minlength=len(models)))
    found: dict[str, Any] = {"effect": dict(zip(models.tolist(), effect.tolist(), strict=True))}
    return design @ effect, found | ({"models too rare for an effect of their own": len(rare)} if rare else {})


def _dummies(of: Indices, rows: Rows, count: int) -> csr_matrix:
    """[row, model] 1 for its model, as differences."""
    size, ones = len(rows.left), np.ones(len(rows.left))
    own = csr_matrix((ones, (np.arange(size), of[rows.left])), shape=(size, count))
    if rows.right is not None:
        return own - csr_matrix((ones, (np.arange(size), of[rows.right])), shape=(size, count))
    member = csr_matrix((ones, (rows.prompt, np.arange(size))), shape=(int(rows.prompt.max(initial=-1)) + 1, size))
    share = diags(1 / np.maximum(np.asarray(member.sum(axis=1)).ravel(), 1))
    return own - member.T @ (share @ (member @ own))


ADJUSTMENTS: Mapping[str, Callable[..., Adjusted]] = {
    "length": _length,
    "length_lowess": _length_lowess,
    "length_tanh": _length_tanh,
    "position": _position,
    "verbosity": _verbosity,
    "source": _source,
}


def debias(grades: Grades, name: str, **options: Any) -> tuple[Grades, dict[str, Any]]:
    """Take one bias off grades.

    length: slope * log(characters), by least squares (`log`: false for characters). length_lowess: a curve over log
    characters (`fraction` of the data behind each point; Cleveland's LOWESS in turns with the level of each prompt;
    after the post-hoc reward calibration of Huang et al. 2025, whose kernel is not known here). length_tanh: phi *
    tanh(difference of characters / its standard deviation), AlpacaEval's feature; `phi` given or by least squares on
    the gaps (theirs: a logistic regression with the models' strengths). position: the liking for the first place, where
    pairs were shown in one order. verbosity: lambda * an aspect, ArmoRM's rule (theirs on all rewards, ours on
    differences inside a prompt). source: an effect for each model that wrote `least` graded responses (20), one for
    all others together.

    All of it assumes that quality and what is taken off are unrelated: what longer answers earn honestly goes too.

    Args:
        grades: of responses or pairs.
        name: which bias.
        options: of the adjustment.

    Returns:
        The grades without it (a prob as a target gap), and what was fitted, with measures before and after.

    Raises:
        BadInput: an unknown name or option, or grades that lack what it needs.

    Example:
        >>> from marginkit.groups import Groups
        >>> from marginkit.records import Group, Response
        >>> groups = Groups.from_iterable([Group("a", "?", (Response("x" * 9), Response("x" * 3)))])
        >>> fair, found = debias(Grades(groups, "utility", np.array([1.0, 0.0])), "length")
        >>> fair.values.round(6), found["correlation with log length"]
        (array([0.5, 0.5]), {'before': 1.0, 'after': None})
    """
    settings = check_debias(name, options)
    rows = rows_of(grades)
    if len(rows.values) < 2:
        raise BadInput(f"debias={name}: {len(rows.values)} graded rows are too few to fit a bias on")
    bias, facts = ADJUSTMENTS[name](grades, rows, **settings)
    values = np.full(len(grades.values), np.nan)
    values[rows.place] = rows.values - bias
    made = replace(grades, values=values, kind="target_gap" if grades.kind == "prob" else grades.kind)
    before, after = length_measures(rows), length_measures(replace(rows, values=rows.values - bias))
    measured = {key: {"before": before[key], "after": after[key]} for key in before}
    return made, facts | measured | {"mean size of what was taken off": float(np.mean(np.abs(bias)))}


def check_debias(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an adjustment, checked before the work is done.

    Raises:
        BadInput: an unknown adjustment or option.

    Example:
        >>> check_debias("length_lowess", {"fraction": "0.3"})
        {'fraction': 0.3}
    """
    if name not in ADJUSTMENTS:
        raise BadInput(f"debias={name!r}: the adjustments are {', '.join(ADJUSTMENTS)}")
    return checked(f"debias={name}", ADJUSTMENTS[name], options)


def length_measures(rows: Rows) -> dict[str, float | None]:
    """How far grades go with length: the correlation inside prompts, and how often the longer answer is the better one.

    Returns:
        `correlation with log length` and `longer is better` (share of pairs that differ in length, an equal grade
        counting half); None where nothing differs.
    """
    length = rows.lengths
    values, feature = _compared(rows), rows.inside(np.log(length))
    spread = float(np.sqrt((values @ values) * (feature @ feature)))
    size = float(np.abs(rows.values).max(initial=0.0))
    related = float(values @ feature) / spread if spread > 1e-9 * size else None
    if rows.right is None:
        known = np.full(len(length), np.nan)
        known[rows.left] = rows.values
        left, right = pairs_inside(rows.starts)
        gap = known[left] - known[right]
    else:
        left, right, gap = rows.left, rows.right, rows.values
    differ = (length[left] != length[right]) & ~np.isnan(gap)
    with_length = np.sign(gap[differ]) * np.sign(length[left][differ] - length[right][differ])
    longer = float(np.mean((with_length + 1) / 2)) if differ.any() else None
    return {"correlation with log length": related, "longer is better": longer}


def _compared(rows: Rows) -> Array:
    return rows.centred(rows.values) if rows.right is None else rows.values
