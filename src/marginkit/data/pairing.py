"""From K graded responses to pairs: those given, all that the evidence orders, by rank, or the best of N^2 by DCRM."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from marginkit.data import ranking
from marginkit.data.dcrm_pairs import dcrm_pairs
from marginkit.data.distances import Tokenize
from marginkit.data.options import checked
from marginkit.data.signals import Signals
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.records import Group, Pair

How = Literal["given", "best_worst", "best_random", "best_vs_others", "adjacent", "all", "dcrm"]
HOWS: tuple[How, ...] = ("given", "best_worst", "best_random", "best_vs_others", "adjacent", "all", "dcrm")
Ties = Literal["half", "label", "drop"]
Votes = dict[tuple[int, int], tuple[float, float, float]]
Found = tuple[list[Pair], int]
"""The pairs of a group, and how many of its pairs have no evidence."""

ONE_RESPONSE, NO_EVIDENCE, ALL_TIES = "one response only", "no evidence to pair on", "all ties"


def make_pairs(
    groups: Groups,
    how: How = "given",
    *,
    ties: Ties = "half",
    max_pairs: int | None = None,
    seed: int = 0,
    keep_unpaired: bool = False,
    signals: Signals | None = None,
    options: Mapping[str, Any] | None = None,
    tokenize: Tokenize | None = None,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Groups:
    """Fill in `pairs`.

    given: the pairs in the data, else the compared pairs (votes summed over raters, oriented toward more wins).
    best_worst, best_random, best_vs_others: the best against the worst, a random other one, each other one.
    adjacent: neighbours in the ranking.
    all: every i < j with evidence (given, else votes, utilities, grades in this order), oriented so that chosen is
    better. Pairs without evidence are left out and counted; given pairs keep their evidence.
    dcrm: the pair of highest DCRM of all ordered pairs (best of N^2); its formula is as recalled, see `data.dcrm`.

    A ranking is by the rewards in `signals`, else by utility where all responses of a group have one, else by grade.
    Rewards of a model (`signals.external`) are the evidence of the pairs they make: `target_gap` is their difference.

    Args:
        groups: groups with responses.
        how: which pairs.
        ties: half (kept and flagged), label (kept in the order of the responses, not flagged) or drop.
        max_pairs: at most so many pairs a group, a random subset in the order of the pairs.
        seed: another seed draws other subsets, and other random opponents.
        keep_unpaired: keep groups without a pair too, for losses per response.
        signals: numbers of every response, see `Signals`; log-probabilities for dcrm.
        options: of dcrm, see `DcrmOptions`.
        tokenize: texts to token ids for the distances of dcrm; words are compared where there is none.
        workers: processes for the distances of dcrm; a script that asks for several needs `if __name__ == "__main__"`.
        progress: called with the number of groups as they are done.

    Returns:
        Groups with at least one pair each (or any, with `keep_unpaired`). `dropped` counts the groups left out ("one
        response only", "no evidence to pair on", "all ties", "no pair as dcrm wants it") and the pairs left out
        ("pairs without evidence", "pairs tied", "pairs over max_pairs").

    Raises:
        BadInput: an unknown `how`, `ties` or option, max_pairs below 1, or dcrm without log-probabilities.

    Example:
        >>> from marginkit.records import Response
        >>> graded = tuple(Response(text, grade=grade) for text, grade in [("x", 1.0), ("y", 3.0), ("z", 2.0)])
        >>> groups = make_pairs(Groups.from_iterable([Group("a", "?", graded)]), how="all")
        >>> [(pair.chosen, pair.rejected) for pair in groups[0].pairs]
        [(1, 0), (2, 0), (1, 2)]
    """
    if how not in HOWS:
        raise BadInput(f"how={how!r}: pairs are made by {', '.join(HOWS)}")
    if ties not in ("half", "label", "drop"):
        raise BadInput(f"ties={ties!r}: the rules are half, label, drop")
    if max_pairs is not None and max_pairs < 1:
        raise BadInput(f"max_pairs={max_pairs}: keep at least 1 pair a group, or None for all")
    if signals is not None:
        signals.check(groups)
    if how == "dcrm":
        best = dcrm_pairs(groups, signals or Signals.of(groups), options or {}, tokenize, workers, progress)
        return _with_unpaired(groups, best) if keep_unpaired else best
    checked(how, _no_options, options or {})
    dropped = Counter(groups.dropped)

    def paired() -> Iterator[Sequence[Pair] | None]:
        for number, group in enumerate(groups):
            rewards = None
            if signals is not None and signals.external:
                rewards = signals.reward[signals.rows(number)].tolist()
            found, bare = _found(group, how, rewards, seed)
            if progress is not None:
                progress(1)
            dropped["pairs without evidence"] += bare
            kept = [pair for pair in found if ties != "drop" or not pair.tie]
            if not kept and keep_unpaired:
                yield ()
                continue
            if not kept:
                dropped[ONE_RESPONSE if len(group.responses) < 2 else ALL_TIES if found else NO_EVIDENCE] += 1
                yield None
                continue
            dropped["pairs tied"] += len(found) - len(kept)
            if ties == "label":
                kept = [replace(pair, tie=False) for pair in kept]
            if max_pairs is not None and len(kept) > max_pairs:
                dropped["pairs over max_pairs"] += len(kept) - max_pairs
                drawn = random.Random(f"{seed}\0{group.id}").sample(range(len(kept)), max_pairs)
                kept = [kept[position] for position in sorted(drawn)]
            yield kept

    made = groups.with_pairs(paired())
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


def _no_options(groups: Groups) -> None:
    """What the other ways take."""


def _with_unpaired(groups: Groups, paired: Groups) -> Groups:
    by_id = {group.id: group.pairs for group in paired}
    return groups.with_pairs(by_id.get(name, ()) for name in groups.column("id"))


def _found(group: Group, how: How, rewards: Sequence[float] | None, seed: int) -> Found:
    if how == "given":
        return _given(group)
    if how == "all":
        if rewards is None:
            return _all(group)
        values = ranking.values_of(group, rewards)
        missing = len(group.responses) - len(values)
        order = [(j, i) if v < w else (i, j) for (v, i), (w, j) in itertools.combinations(values, 2)]
        total = len(group.responses) * (len(group.responses) - 1) // 2
        return [_rewarded(i, j, rewards) for i, j in order], total - len(order) if missing else 0
    values = ranking.values_of(group, rewards)
    if len(values) < 2:
        return [], 0
    if how == "best_random":
        order = ranking.best_random(values, f"{seed}\0{group.id}")
    else:
        by_rank = {"best_worst": ranking.best_worst, "best_vs_others": ranking.best_vs_others}
        order = by_rank.get(how, ranking.adjacent)(values)
    if rewards is not None:
        return [_rewarded(i, j, rewards) for i, j in order], 0
    known, worth = _given_pairs(group), {at: value for value, at in values}
    found: list[Pair] = []
    for i, j in order:
        given = known.get((min(i, j), max(i, j)))
        found += given or [Pair(i, j, tie=worth[i] == worth[j])]
    return found, 0


def _rewarded(chosen: int, rejected: int, rewards: Sequence[float]) -> Pair:
    """A pair as a model orders it: the difference of its rewards is the evidence."""
    gap = rewards[chosen] - rewards[rejected]
    return Pair(chosen, rejected, target_gap=gap, tie=gap == 0)


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


def _given_pairs(group: Group) -> dict[tuple[int, int], list[Pair]]:
    found: dict[tuple[int, int], list[Pair]] = {}
    for pair in group.pairs:
        i, j = sorted((pair.chosen, pair.rejected))
        found.setdefault((i, j), []).append(pair)
    return found


def _given(group: Group) -> Found:
    if group.pairs:
        return list(group.pairs), 0
    return [_compared(i, j, votes) for (i, j), votes in _votes(group).items()], 0


def _all(group: Group) -> Found:
    given, votes = _given_pairs(group), _votes(group)
    utilities = [response.utility for response in group.responses]
    grades = [response.grade for response in group.responses]
    found: list[Pair] = []
    bare = 0
    for i, j in itertools.combinations(range(len(group.responses)), 2):
        if (i, j) in given:
            found += given[i, j]
            continue
        if (i, j) in votes:
            found.append(_compared(i, j, votes[i, j]))
            continue
        u, v = utilities[i], utilities[j]
        if u is None or v is None:  # the precedence of `pair_evidence`, without its record for each of K (K - 1) / 2
            u, v = grades[i], grades[j]
        if u is None or v is None:
            bare += 1
        else:
            found.append(Pair(j, i) if u < v else Pair(i, j, tie=u == v))
    return found, bare
