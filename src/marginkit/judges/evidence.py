"""From the numbers of a judge to the evidence in a group, with the bias of position cancelled and counted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from marginkit.data.judged import cancel_position, clipped_logit
from marginkit.data.rows import same
from marginkit.judges.questions import Manner
from marginkit.records import Comparison, Group, Pair, Rating, Response

ONE_RESPONSE = "one response only"
Values = Mapping[tuple[tuple[int, ...], int], float | str]
"""By (responses as shown, sample): the number read, or why there is none."""


@dataclass
class Tally:
    """What happened to pairs, responses and groups on the way.

    Args:
        judged: pairs (or responses) with evidence of the judge.
        identical: pairs of equal texts: ties without a question.
        ties: pairs that the judge holds equal, those of equal texts included.
        missing: pairs (or responses) without, by reason.
        dropped: groups left out, by reason.
        replaced: pairs (or responses and comparisons) whose earlier evidence was replaced.
        clipped: answers whose probability was clipped.
        bias: number, sum and sum of squares of the bias of position.
        turned: pairs where both orders prefer the same position.
        agree: pairs with a given order that the judge agrees with.
        disagree: pairs with a given order that it turns.
    """

    judged: int = 0
    identical: int = 0
    ties: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    replaced: int = 0
    clipped: int = 0
    bias: tuple[int, float, float] = (0, 0.0, 0.0)
    turned: int = 0
    agree: int = 0
    disagree: int = 0

    def position(self) -> dict[str, Any] | None:
        """Mean bias toward the answer shown first, its spread, and how often the order alone decides."""
        n, total, squares = self.bias
        if not n:
            return None
        mean = total / n
        spread = math.sqrt(max(0.0, squares / n - mean * mean))
        return {"pairs": n, "mean": mean, "sd": spread, "order_decides": self.turned / n}


def judged_group(group: Group, manner: Manner, values: Values, tally: Tally) -> Group | None:
    """The group with the judge's evidence; None where nothing in it was judged.

    With values toward the answer shown first, m = (mean of order i, j - mean of order j, i) / 2 toward i: a constant
    bias of the position cancels exactly, b = (their sum) / 2 is counted.

    logprobs and evidence make `pairs` anew, each turned toward the answer that the judge prefers, with a target gap or
    a strength; weights stay. verdict leaves votes, one comparison an order, and no pairs: pairs are made of votes.
    score and expected replace grade, ratings and utility of the responses, and turn given pairs by the new grades.
    Votes of others between judged responses are taken away, since they would speak first.

    Args:
        group: as it was.
        manner: how the judge was asked.
        values: what was read.
        tally: is counted up.

    Returns:
        The group.
    """
    return _with_pairs(group, manner, values, tally) if manner.pairwise else _with_grades(group, manner, values, tally)


def _with_pairs(group: Group, manner: Manner, values: Values, tally: Tally) -> Group | None:
    if len(group.responses) < 2:
        tally.dropped[ONE_RESPONSE] += 1
        return None
    given = {(pair.chosen, pair.rejected) for pair in group.pairs}
    wanted = manner.judged_pairs(group)
    tally.missing["pair given twice"] += len(group.pairs) - len({frozenset(ends) for ends in given})
    pairs: list[Pair] = []
    comparisons: list[Comparison] = []
    reasons: list[str] = []
    for pair in wanted:
        i, j = pair.chosen, pair.rejected
        orders = manner.shown_orders(group, i, j)
        if same(group.responses[i], group.responses[j]):
            tally.identical += 1
            made = _pair(pair, 0.0, manner)
            comparisons.append(Comparison(i, j, 0.0, 0.0, 1.0, rater=manner.model))
        else:
            found = {shown: [values[shown, sample] for sample in range(manner.samples)] for shown in orders}
            read = {shown: [v for v in some if not isinstance(v, str)] for shown, some in found.items()}
            if empty := [shown for shown in orders if not read[shown]]:  # one order alone would carry its bias
                reasons.append(str(found[empty[0]][0]))
                tally.missing[reasons[-1]] += 1
                continue
            _count(read, manner, tally)
            made = _pair(pair, _margin(i, j, read), manner)
            comparisons += [_votes(i, j, shown, some, manner) for shown, some in read.items()]
        pairs.append(made)
        tally.judged += 1
        tally.ties += made.tie
        tally.replaced += _has_evidence(pair)
        if (i, j) in given and not pair.tie and not made.tie:
            tally.agree += made.chosen == i
            tally.disagree += made.chosen != i
    if not pairs:
        tally.dropped[f"not judged: {reasons[0]}"] += 1
        return None
    judged = {frozenset((pair.chosen, pair.rejected)) for pair in pairs}
    others = tuple(c for c in group.comparisons if frozenset((c.i, c.j)) not in judged)
    tally.replaced += len(group.comparisons) - len(others)
    if manner.ask == "verdict":
        return replace(group, pairs=(), comparisons=(*others, *comparisons))
    return replace(group, pairs=tuple(pairs), comparisons=others)


def _pair(pair: Pair, margin: float, manner: Manner) -> Pair:
    """The pair turned by a margin toward its chosen response."""
    ends = (pair.chosen, pair.rejected) if margin >= 0 else (pair.rejected, pair.chosen)
    return Pair(
        *ends,
        strength=abs(margin) if manner.ask == "evidence" else None,
        target_gap=abs(margin) if manner.ask == "logprobs" else None,
        weight=pair.weight,
        tie=margin == 0,
    )


def _margin(i: int, j: int, read: Mapping[tuple[int, int], Sequence[float]]) -> float:
    if len(read) == 2:
        return float(cancel_position(fmean(read[i, j]), fmean(read[j, i]))[0])
    [(shown, some)] = read.items()
    return fmean(some) if shown == (i, j) else -fmean(some)


def _count(read: Mapping[tuple[int, int], Sequence[float]], manner: Manner, tally: Tally) -> None:
    if manner.ask == "logprobs":
        most = float(clipped_logit(1.0))
        tally.clipped += sum(abs(v) >= most - 1e-9 for some in read.values() for v in some)
    if len(read) == 2:
        first, second = (fmean(some) for some in read.values())
        b = float(cancel_position(first, second)[1])
        n, total, squares = tally.bias
        tally.bias = (n + 1, total + b, squares + b * b)
        tally.turned += first * second > 0


def _votes(i: int, j: int, shown: tuple[int, int], read: Sequence[float], manner: Manner) -> Comparison:
    """The verdicts in one order."""
    first, second = float(sum(v > 0 for v in read)), float(sum(v < 0 for v in read))
    wins = (first, second) if shown == (i, j) else (second, first)
    ties = len(read) - first - second
    return Comparison(i, j, *wins, ties, rater=manner.model, order=f"{shown[0]},{shown[1]}")


def _with_grades(group: Group, manner: Manner, values: Values, tally: Tally) -> Group | None:
    responses: list[Response] = []
    reasons: list[str] = []
    for at, response in enumerate(group.responses):
        found = [values[(at,), sample] for sample in range(manner.samples)]
        scores = [value for value in found if not isinstance(value, str)]
        if scores:
            tally.judged += 1
        else:
            reasons.append(str(found[0]))
            tally.missing[reasons[-1]] += 1
        tally.replaced += response.grade is not None or bool(response.ratings) or response.utility is not None
        responses.append(
            replace(
                response,
                grade=fmean(scores) if scores else None,
                ratings=tuple(Rating(manner.model, score) for score in scores),
                utility=None,
            )
        )
    if len(reasons) == len(responses):
        tally.dropped[f"not judged: {reasons[0]}"] += 1
        return None
    pairs = []
    for pair in group.pairs:
        chosen, rejected = responses[pair.chosen].grade, responses[pair.rejected].grade
        if chosen is None or rejected is None:
            tally.missing["pairs without two grades"] += 1
            continue
        gap = chosen - rejected
        ends = (pair.chosen, pair.rejected) if gap >= 0 else (pair.rejected, pair.chosen)
        pairs.append(Pair(*ends, weight=pair.weight, tie=gap == 0))
        tally.ties += gap == 0
        if gap and not pair.tie:
            tally.agree += gap > 0
            tally.disagree += gap < 0
    graded = {at for at, response in enumerate(responses) if response.grade is not None}
    comparisons = tuple(c for c in group.comparisons if not {c.i, c.j} <= graded)  # votes would speak before grades
    tally.replaced += len(group.comparisons) - len(comparisons)
    return replace(group, responses=tuple(responses), pairs=tuple(pairs), comparisons=comparisons)


def _has_evidence(pair: Pair) -> bool:
    return any(value is not None for value in (pair.strength, pair.votes, pair.prob, pair.target_gap))
