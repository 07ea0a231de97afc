"""From K graded responses to pairs: those given, the best and the worst, or all that the evidence orders."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from marginkit.data.grades import pair_evidence
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.records import Group, Pair

How = Literal["given", "best_worst", "all"]
Ties = Literal["half", "label", "drop"]
Votes = dict[tuple[int, int], tuple[float, float, float]]

ONE_RESPONSE, NO_EVIDENCE, ALL_TIES = "one response only", "no evidence to pair on", "all ties"


def make_pairs(
    groups: Groups,
    how: How = "given",
    *,
    ties: Ties = "half",
    max_pairs: int | None = None,
    seed: int = 0,
    keep_unpaired: bool = False,
) -> Groups:
    """Fill in `pairs`.

    given: the pairs in the data, else the compared pairs (votes summed over raters, oriented toward more wins).
    best_worst: the best against the worst by utility, else by grade.
    all: every i < j with evidence (given, else votes, utilities, grades in this order), oriented so that chosen is
    better. Pairs without evidence are left out and counted; given pairs keep their evidence.

    Args:
        groups: groups with responses.
        how: which pairs.
        ties: half (kept and flagged), label (kept in the order of the responses, not flagged) or drop.
        max_pairs: at most so many pairs a group, a random subset in the order of the pairs.
        seed: another seed draws other subsets.
        keep_unpaired: keep groups without a pair too, for losses per response.

    Returns:
        Groups with at least one pair each (or any, with `keep_unpaired`). `dropped` counts the groups left out ("one
        response only", "no evidence to pair on", "all ties") and the pairs left out ("pairs without evidence", "pairs
        tied", "pairs over max_pairs").

    Raises:
        BadInput: an unknown `how` or `ties`, or max_pairs below 1.

    Example:
        >>> from marginkit.records import Response
        >>> graded = tuple(Response(text, grade=grade) for text, grade in [("x", 1.0), ("y", 3.0), ("z", 2.0)])
        >>> groups = make_pairs(Groups.from_iterable([Group("a", "?", graded)]), how="all")
        >>> [(pair.chosen, pair.rejected) for pair in groups[0].pairs]
        [(1, 0), (2, 0), (1, 2)]
    """
    makers = {"given": _given, "best_worst": _best_worst, "all": _all}
    if how not in makers:
        raise BadInput(f"how={how!r}: pairs are made by {', '.join(makers)}")
    if ties not in ("half", "label", "drop"):
        raise BadInput(f"ties={ties!r}: the rules are half, label, drop")
    if max_pairs is not None and max_pairs < 1:
        raise BadInput(f"max_pairs={max_pairs}: keep at least 1 pair a group, or None for all")
    dropped = Counter(groups.dropped)

    def paired() -> Iterator[Group]:
        for group in groups:
            found, bare = makers[how](group)
            dropped["pairs without evidence"] += bare
            kept = [pair for pair in found if ties != "drop" or not pair.tie]
            if not kept and keep_unpaired:
                yield replace(group, pairs=())
                continue
            if not kept:
                dropped[ONE_RESPONSE if len(group.responses) < 2 else ALL_TIES if found else NO_EVIDENCE] += 1
                continue
            dropped["pairs tied"] += len(found) - len(kept)
            if ties == "label":
                kept = [replace(pair, tie=False) for pair in kept]
            if max_pairs is not None and len(kept) > max_pairs:
                dropped["pairs over max_pairs"] += len(kept) - max_pairs
                drawn = random.Random(f"{seed}\0{group.id}").sample(range(len(kept)), max_pairs)
                kept = [kept[position] for position in sorted(drawn)]
            yield replace(group, pairs=tuple(kept))

    made = Groups.from_iterable(paired())
    made.dropped = {reason: count for reason, count in dropped.items() if count}
    return made


def pairs_of(group: Group) -> list[Pair]:
    """The pairs of one group, as a survey sees them: those in the data, else all that its evidence orders.

    Example:
        >>> from marginkit.records import Response
        >>> pairs_of(Group("a", "?", (Response("x", grade=1.0), Response("y", grade=3.0))))[0].chosen
        1
    """
    return (_given if group.pairs or group.comparisons else _all)(group)[0]


def _votes(group: Group) -> Votes:
    """Votes (for i, for j, ties) per i < j, summed over raters and orders."""
    total: Votes = {}
    for c in group.comparisons:
        i, j, wins_i, wins_j = (c.i, c.j, c.wins_i, c.wins_j) if c.i < c.j else (c.j, c.i, c.wins_j, c.wins_i)
        old = total.get((i, j), (0.0, 0.0, 0.0))
        total[i, j] = (old[0] + wins_i, old[1] + wins_j, old[2] + c.ties)
    return total


def _compared(i: int, j: int, votes: tuple[float, float, float]) -> Pair:
    for_i, for_j, equal = votes
    if for_j > for_i:
        return Pair(j, i, votes=(for_j, for_i, equal))
    return Pair(i, j, votes=votes, tie=for_i == for_j)


def _graded(group: Group, i: int, j: int) -> Pair | None:
    """The pair as utilities order it, else as grades do; None where neither is known of both."""
    evidence = pair_evidence(group, Pair(i, j))
    gap = evidence.grade_gap if evidence.target_gap is None else evidence.target_gap
    if gap is None:
        return None
    return Pair(j, i) if gap < 0 else Pair(i, j, tie=gap == 0)


def _given_pairs(group: Group) -> dict[tuple[int, int], list[Pair]]:
    found: dict[tuple[int, int], list[Pair]] = {}
    for pair in group.pairs:
        i, j = sorted((pair.chosen, pair.rejected))
        found.setdefault((i, j), []).append(pair)
    return found


def _given(group: Group) -> tuple[list[Pair], int]:
    if group.pairs:
        return list(group.pairs), 0
    return [_compared(i, j, votes) for (i, j), votes in _votes(group).items()], 0


def _best_worst(group: Group) -> tuple[list[Pair], int]:
    for name in ("utility", "grade"):
        values = [(getattr(r, name), at) for at, r in enumerate(group.responses) if getattr(r, name) is not None]
        if len(values) >= 2 and (name == "grade" or len(values) == len(group.responses)):
            best = max(values, key=lambda value: (value[0], -value[1]))  # the first of equals, so runs agree
            worst = min(values, key=lambda value: (value[0], value[1] == best[1], value[1]))
            i, j = sorted((best[1], worst[1]))
            known = _given_pairs(group).get((i, j))
            return known or [Pair(best[1], worst[1], tie=best[0] == worst[0])], 0
    return [], 0


def _all(group: Group) -> tuple[list[Pair], int]:
    given, votes = _given_pairs(group), _votes(group)
    found: list[Pair] = []
    bare = 0
    for i, j in itertools.combinations(range(len(group.responses)), 2):
        if (i, j) in given:
            found += given[i, j]
        elif (i, j) in votes:
            found.append(_compared(i, j, votes[i, j]))
        elif pair := _graded(group, i, j):
            found.append(pair)
        else:
            bare += 1
    return found, bare
