"""Grading by a judge's probabilities: of responses against a reference, or of pairs, both orders joined."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from marginkit.data.graded import Grades, paired_for_grading
from marginkit.data.judged import CLIP, cancel_position, clipped_logit, preference_prob
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.records import Comparison, Group

Array = npt.NDArray[np.float64]
Scale = Literal["auto", "prob", "preference"]


def shown_first(comparison: Comparison) -> int | None:
    """Which response was shown first; None where the comparison does not say.

    `Comparison.order` names both responses in the order in which they were shown: "1,0" for response 1 first.

    Raises:
        BadInput: the order names anything else.

    Example:
        >>> shown_first(Comparison(0, 1, 1.0, 0.0, order="1,0"))
        1
    """
    c = comparison
    if c.order is None:
        return None
    for first, second in ((c.i, c.j), (c.j, c.i)):
        if c.order.replace(" ", "") == f"{first},{second}":
            return first
    raise BadInput(
        f"a comparison of responses {c.i} and {c.j} has order {c.order!r}: name the two in the order they were shown, "
        f'"{c.i},{c.j}" or "{c.j},{c.i}"'
    )


def grade_by_judge_probs(groups: Groups, *, clip: float = CLIP, scale: Scale = "auto") -> Grades:
    """Logits of a judge's probabilities, clipped; the liking for a place cancelled where both orders are there.

    Pairs: `prob` of a pair; else its comparisons, whose wins are probabilities or votes of the judge. Comparisons of
    both orders (`order`, see `shown_first`) give m = (logit p_AB - logit p_BA) / 2; of one order
    only, the mean liking b of the others is taken off. No pairs: grades are P(better than a reference), and their
    logits are utilities.

    Args:
        groups: groups with probabilities.
        clip: probabilities are moved into [clip, 1 - clip].
        scale: of grades: prob, AlpacaEval's preference in 1..2, or auto (preference if all are in 1..2).

    Raises:
        BadInput: a probability outside its range, or there is none.

    Example:
        >>> from marginkit.records import Response
        >>> asked = (Comparison(0, 1, 0.9, 0.1, order="0,1"), Comparison(0, 1, 0.7, 0.3, order="1,0"))
        >>> group = Group("a", "?", (Response("x"), Response("y")), comparisons=asked)
        >>> grades = grade_by_judge_probs(Groups.from_iterable([group]))
        >>> grades.values.round(3), round(grades.facts["liking for the first place"], 3)
        (array([1.522]), 0.675)
    """
    if not any(group.pairs or group.comparisons for group in groups):
        return _against_reference(groups, clip, scale)
    paired = paired_for_grading(groups)
    gaps: list[float] = []
    likings: list[float] = []
    one_sided: list[tuple[int, float]] = []  # where in gaps, and which way the liking pulled
    by_kind = {"prob of the pair": 0, "both orders": 0, "one order": 0, "no order told": 0}
    missing = 0
    for group in paired:
        asked = _asked(group, clip)
        for pair in group.pairs:
            first, second, unknown = asked.get((pair.chosen, pair.rejected), ([], [], []))
            if pair.prob is not None:
                by_kind["prob of the pair"] += 1
                gaps.append(float(clipped_logit(pair.prob, clip=clip)))
            elif first and second:
                by_kind["both orders"] += 1
                gap, pull = cancel_position(np.mean(first), -np.mean(second))
                gaps.append(float(gap))
                likings.append(float(pull))
            elif first or second:
                by_kind["one order"] += 1
                one_sided.append((len(gaps), 1.0 if first else -1.0))
                gaps.append(float(np.mean(first or second)))
            elif unknown:
                by_kind["no order told"] += 1
                gaps.append(float(np.mean(unknown)))
            else:
                missing += 1
                gaps.append(np.nan)
    liking = float(np.mean(likings)) if likings else 0.0
    for at, sign in one_sided:
        gaps[at] -= sign * liking
    facts: dict[str, Any] = {"clip": clip, "pairs by evidence": {kind: n for kind, n in by_kind.items() if n}}
    if likings:
        facts["liking for the first place"] = liking
    return Grades(paired, "target_gap", np.array(gaps), {"no probability": missing} if missing else {}, facts)


Logits = tuple[list[float], list[float], list[float]]


def _asked(group: Group, clip: float) -> dict[tuple[int, int], Logits]:
    """Of every ordered pair (a, b) the logits of P(a is better): a shown first, b shown first, not told."""
    found: dict[tuple[int, int], Logits] = {}
    for c in group.comparisons:
        total = c.wins_i + c.wins_j + c.ties
        if total <= 0:
            continue
        value = float(clipped_logit((c.wins_i + c.ties / 2) / total, clip=clip))
        first = shown_first(c)
        place = 2 if first is None else 0 if first == c.i else 1
        found.setdefault((c.i, c.j), ([], [], []))[place].append(value)
        found.setdefault((c.j, c.i), ([], [], []))[(1, 0, 2)[place]].append(-value)
    return found


def _against_reference(groups: Groups, clip: float, scale: Scale) -> Grades:
    grade = np.array([np.nan if r.grade is None else r.grade for group in groups for r in group.responses], dtype=float)
    known = ~np.isnan(grade)
    if not known.any():
        raise BadInput(
            "how=judge_probs: no pair has a probability, no comparison and no grade is there to read one from"
        )
    if scale not in ("auto", "prob", "preference"):
        raise BadInput(f"scale={scale!r}: the scales are auto, prob, preference")
    preference = scale == "preference" or (
        scale == "auto" and bool((grade[known] >= 1).all() and 1 < grade[known].max() <= 2)
    )
    values = np.full(len(grade), np.nan)
    values[known] = clipped_logit(preference_prob(grade[known]) if preference else grade[known], clip=clip)
    clipped = float(np.mean(np.abs(values[known]) >= np.abs(clipped_logit(clip, clip=clip)) - 1e-9))
    facts = {"clip": clip, "scale": "preference" if preference else "prob", "share clipped": clipped}
    missing = int((~known).sum())
    return Grades(groups, "utility", values, {"no grade": missing} if missing else {}, facts)
