"""What a grader says of some groups, and how it becomes the evidence that training uses."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from marginkit.data.grades import pair_evidence
from marginkit.data.pairing import make_pairs
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.records import Group, Pair, Response

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Kind = Literal["utility", "target_gap", "prob"]
Disagreement = Literal["keep", "drop", "trust_label", "trust_grade"]
Ungraded = Literal["keep", "drop"]


@dataclass(frozen=True, slots=True)
class Grades:
    """Numbers of a grader, flat in the order of the groups.

    Args:
        groups: what they are about; a grader of pairs has filled in `pairs`.
        kind: utility (logits, one a response), target_gap (logits toward chosen, one a pair) or prob (P(chosen is
            better), one a pair).
        values: [response] or [pair]; NaN where it could not grade.
        ungraded: how many of them are NaN, by reason.
        facts: what it fitted or found, plain values.
    """

    groups: Groups
    kind: Kind
    values: Array
    ungraded: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        missing = int(np.isnan(self.values).sum())
        if np.isinf(self.values).any():
            raise BadInput(f"a {self.kind} is infinite: set a prior, a clip or a penalty that keeps it finite")
        if missing != sum(self.ungraded.values()):
            raise ValueError(f"{missing} values are NaN, but the reasons count {sum(self.ungraded.values())}")


def response_starts(groups: Groups) -> Indices:
    """[group + 1] where the responses of each group begin in a flat column, and their number.

    Example:
        >>> two, one = Group("a", "?", (Response("x"), Response("y"))), Group("b", "?", (Response("z"),))
        >>> response_starts(Groups.from_iterable([two, one]))
        array([0, 2, 3])
    """
    return np.cumsum([0, *(len(group.responses) for group in groups)])


def paired_for_grading(groups: Groups) -> Groups:
    """The pairs a grader of pairs speaks of: those of the data (given or compared), or all that grades order.

    Groups without a pair stay; what is left out is not counted as dropped, since nothing is.

    Example:
        >>> group = Group("a", "?", (Response("x", grade=1.0), Response("y", grade=2.0)))
        >>> paired_for_grading(Groups.from_iterable([group]))[0].pairs
        (Pair(chosen=1, rejected=0, strength=None, votes=None, prob=None, target_gap=None, weight=1.0, tie=False),)
    """
    given = any(group.pairs or group.comparisons for group in groups)
    made = make_pairs(groups, "given" if given else "all", keep_unpaired=True)
    made.dropped = dict(groups.dropped)
    return made


def pairs_inside(starts: Indices) -> tuple[Indices, Indices]:
    """Every i < j of every group, as indices into a flat column of responses.

    Example:
        >>> [side.tolist() for side in pairs_inside(np.array([0, 2, 5]))]
        [[0, 2, 2, 3], [1, 3, 4, 4]]
    """
    sizes = np.diff(starts)
    left, right, owner = [], [], []
    for size in np.unique(sizes):
        i, j = np.triu_indices(size, 1)
        at = np.flatnonzero(sizes == size)
        left.append((starts[at, None] + i).ravel())
        right.append((starts[at, None] + j).ravel())
        owner.append(np.repeat(at, len(i)))
    if not left:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    order = np.argsort(np.concatenate(owner), kind="stable")
    return np.concatenate(left)[order], np.concatenate(right)[order]


def check_policies(disagreement: str, ungraded: str) -> None:
    """Refuse an unknown policy; to be asked before the work is done.

    Raises:
        BadInput: which one, and the known ones.
    """
    if disagreement not in ("keep", "drop", "trust_label", "trust_grade"):
        raise BadInput(f"disagreement={disagreement!r}: the policies are keep, drop, trust_label, trust_grade")
    if ungraded not in ("keep", "drop"):
        raise BadInput(f"ungraded={ungraded!r}: keep or drop what could not be graded")


def apply_grades(
    grades: Grades, *, disagreement: Disagreement = "keep", ungraded: Ungraded = "keep"
) -> tuple[Groups, dict[str, int]]:
    """Write grades into the groups, so that they are what training uses.

    Of a graded pair the evidence that would speak first is taken away (votes and prob before a gap in logits, a target
    gap before utilities) and counted; strength and grades stay, they are in dataset units and speak only where there is
    nothing else. Comparisons between graded responses are taken away too, since pairs would be made of their votes.

    Args:
        grades: what a grader said.
        disagreement: a graded gap below 0 says that the rejected one is better. keep: the order stays and the soft
            target lies below one half; drop: the pair is left out; trust_grade: the two are swapped, and a strength
            that spoke for the old order is superseded; trust_label: the grade is set aside and P = 1. A tie has no
            label to go against: the grade orders its two in any case.
        ungraded: keep what could not be graded as it was, or drop those pairs, and groups with nothing graded.

    Returns:
        The groups, `dropped` counting what was left out; and how often which evidence was superseded.

    Raises:
        BadInput: an unknown policy.

    Example:
        >>> group = Group("a", "?", (Response("x"), Response("y")), pairs=(Pair(0, 1, votes=(3.0, 1.0, 0.0)),))
        >>> groups = Groups.from_iterable([group])
        >>> made, superseded = apply_grades(Grades(groups, "target_gap", np.array([0.5])))
        >>> pair_evidence(made[0], made[0].pairs[0]).target_gap, superseded
        (0.5, {'votes': 1})
    """
    check_policies(disagreement, ungraded)
    superseded: Counter[str] = Counter()
    dropped = Counter(grades.groups.dropped)
    writer = _Writer(grades.kind, disagreement, ungraded, superseded, dropped)

    def written() -> Iterator[Group]:
        start = 0
        for group in grades.groups:
            count = len(group.responses if grades.kind == "utility" else group.pairs)
            made = writer.write(group, grades.values[start : start + count].tolist())
            start += count
            if made is not None:
                yield made

    groups = Groups.from_iterable(written())
    groups.dropped = {reason: count for reason, count in dropped.items() if count}
    return groups, {name: count for name, count in superseded.items() if count}


def label_agreement(grades: Grades) -> float | None:
    """Share of the labelled pairs that are graded other than equal in which chosen has the better grade; None if none.

    Ties are left out: the order in which they stand is no label.

    Example:
        >>> group = Group("a", "?", tuple(map(Response, "xyz")), pairs=(Pair(0, 1), Pair(1, 2), Pair(0, 2, tie=True)))
        >>> label_agreement(Grades(Groups.from_iterable([group]), "utility", np.array([1.0, 0.0, 3.0])))
        0.5
    """
    pairs = [
        (start + pair.chosen, start + pair.rejected, pair.tie)
        for start, group in zip(response_starts(grades.groups).tolist(), grades.groups, strict=False)
        for pair in group.pairs
    ]
    chosen, rejected, tie = np.array(pairs, dtype=np.int64).reshape(-1, 3).T
    values = grades.values
    toward = values[chosen] - values[rejected] if grades.kind == "utility" else values - 0.5 * (grades.kind == "prob")
    toward = toward[(tie == 0) & ~np.isnan(toward) & (toward != 0)]
    return float(np.mean(toward > 0)) if len(toward) else None


@dataclass(slots=True)
class _Writer:
    """Writes the values of one group into it, and counts what had to go."""

    kind: Kind
    disagreement: Disagreement
    ungraded: Ungraded
    superseded: Counter[str]
    dropped: Counter[str]

    def write(self, group: Group, values: Sequence[float]) -> Group | None:
        """The group with its new evidence; None if it is left out."""
        known = [value == value for value in values]  # NaN is not equal to itself
        if self.ungraded == "drop" and (sum(known) < 2 if self.kind == "utility" else not any(known)):
            self.dropped["not graded"] += 1
            return None
        responses = group.responses
        if self.kind == "utility":
            utilities = [value if ok else None for value, ok in zip(values, known, strict=True)]
            responses = tuple(map(self._response, responses, utilities))
            graded = [known[pair.chosen] and known[pair.rejected] for pair in group.pairs]
            pairs = [_bare(pair) for pair in group.pairs]
        else:
            graded = known
            pairs = [_bare(pair, self.kind, value) for pair, value in zip(group.pairs, values, strict=True)]
        made = replace(group, responses=responses)
        kept = []
        for old, pair, is_graded in zip(group.pairs, pairs, graded, strict=True):
            settled = self._settle(made, old, pair) if is_graded else self._left(old)
            kept += [] if settled is None else [settled]
        if group.pairs and not kept:
            self.dropped["no pair left"] += 1
            return None
        return replace(made, pairs=tuple(kept), comparisons=self._comparisons(group, known, graded))

    def _response(self, response: Response, utility: float | None) -> Response:
        self.superseded["utility"] += response.utility is not None
        return replace(response, utility=utility)

    def _left(self, pair: Pair) -> Pair | None:
        if self.ungraded == "keep":
            return pair
        self.dropped["pairs not graded"] += 1
        return None

    def _settle(self, group: Group, old: Pair, pair: Pair) -> Pair | None:
        """A graded pair: what spoke before is counted as superseded, and the label is compared with the grade."""
        for name in ("votes", "prob", "target_gap"):
            self.superseded[name] += getattr(old, name) is not None
        found = pair_evidence(group, pair)
        toward = found.target_gap if found.prob is None else found.prob - 0.5
        assert toward is not None
        pair = replace(pair, tie=toward == 0)
        if toward >= 0 or (self.disagreement == "keep" and not old.tie):
            return pair
        if not old.tie:  # the order of a tie is no label
            if self.disagreement == "drop":
                self.dropped["pairs whose grade disagrees with the label"] += 1
                return None
            if self.disagreement == "trust_label":
                return replace(pair, target_gap=None, prob=1.0)
        turned = None if pair.strength is None or pair.strength > 0 else -pair.strength
        self.superseded["strength"] += pair.strength is not None and turned is None
        return replace(
            pair,
            chosen=pair.rejected,
            rejected=pair.chosen,
            prob=None if pair.prob is None else 1 - pair.prob,
            target_gap=None if pair.target_gap is None else -pair.target_gap,
            strength=turned,
        )

    def _comparisons(self, group: Group, known: Sequence[bool], graded: Sequence[bool]) -> tuple[Any, ...]:
        if self.kind == "utility":
            settled = {(i, j) for i, a in enumerate(known) for j, b in enumerate(known) if a and b}
        else:
            both = [(p.chosen, p.rejected) for p, ok in zip(group.pairs, graded, strict=True) if ok]
            settled = {*both, *((j, i) for i, j in both)}
        kept = tuple(c for c in group.comparisons if (c.i, c.j) not in settled)
        self.superseded["comparisons"] += len(group.comparisons) - len(kept)
        return kept


def _bare(pair: Pair, kind: Kind = "utility", value: float = math.nan) -> Pair:
    """A pair without evidence in logits or probabilities, but for the value that it is given."""
    new = {kind: value} if kind != "utility" else {}
    return replace(pair, votes=None, prob=new.get("prob"), target_gap=new.get("target_gap"))
