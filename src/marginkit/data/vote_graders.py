"""Grading by votes, rankings, pairwise probabilities and a judge's probabilities."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from marginkit.data.bradley_terry import (
    Comparisons,
    bootstrap_bradley_terry,
    describe_components,
    elo,
    fit_bradley_terry,
)
from marginkit.data.graded import Grades, paired_for_grading
from marginkit.data.grades import pair_evidence
from marginkit.data.votes import effective_votes, vote_log_odds
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.records import Group, Pair

Array = npt.NDArray[np.float64]
Evidence = Literal["auto", "votes", "prob", "grades", "labels"]
Wins = list[tuple[int, int, float, float]]


def grade_by_votes(groups: Groups, *, prior_for: float = 0.5, prior_against: float = 0.5) -> Grades:
    """Target gap = log((wins + ties/2 + a) / (losses + ties/2 + b)), logits; see `vote_log_odds`.

    Left alone, training uses the raw share of the votes (decision 0005), which is the better target for a model that
    pools over pairs. This is for what needs a number of a single pair: selection, histograms, gaps beside others.

    Args:
        groups: groups with votes, of pairs or as comparisons.
        prior_for: a of the Beta prior, a count >= 0 added to the votes for chosen.
        prior_against: b, added to those for rejected.

    Raises:
        BadInput: a prior below 0, or one that leaves a gap infinite.

    Example:
        >>> from marginkit.records import Pair, Response
        >>> group = Group("a", "?", (Response("x"), Response("y")), pairs=(Pair(0, 1, votes=(3.0, 1.0, 0.0)),))
        >>> grade_by_votes(Groups.from_iterable([group]), prior_for=1.0, prior_against=1.0).values.round(4)
        array([0.6931])
    """
    prior = (prior_for, prior_against)
    paired = paired_for_grading(groups)
    rows = [_pair_votes(group, pair) for group in paired for pair in group.pairs]
    counts = np.array(rows, dtype=float).reshape(-1, 3)
    values, known = np.full(len(counts), np.nan), ~np.isnan(counts[:, 0])
    values[known] = vote_log_odds(*counts[known].T, prior=prior)
    trusted = effective_votes(*counts[known].T, prior=prior)
    facts = {"prior": list(prior)} | (
        {"median votes": float(np.median(counts[known].sum(1))), "median effective votes": float(np.median(trusted))}
        if known.any()
        else {}
    )
    missing = int((~known).sum())
    return Grades(paired, "target_gap", values, {"no votes": missing} if missing else {}, facts)


def _pair_votes(group: Group, pair: Pair) -> tuple[float, float, float]:
    """Votes for chosen, for rejected, and ties: of the pair, else of its comparisons; NaN where nobody voted."""
    if pair.votes is not None:
        return pair.votes
    asked = [c for c in group.comparisons if {c.i, c.j} == {pair.chosen, pair.rejected}]
    if not sum(c.wins_i + c.wins_j + c.ties for c in asked):
        return math.nan, math.nan, math.nan
    wins = sum(c.wins_i if c.i == pair.chosen else c.wins_j for c in asked)
    losses = sum(c.wins_j if c.i == pair.chosen else c.wins_i for c in asked)
    return wins, losses, sum(c.ties for c in asked)


def grade_by_ranking(
    groups: Groups,
    *,
    evidence: Evidence = "auto",
    over: Literal["prompt", "model"] = "prompt",
    l2: float = 0.1,
    disconnected: Literal["leave", "anchor"] = "leave",
    bootstrap: int = 0,
    seed: int = 0,
) -> Grades:
    """Utilities by a regularised Bradley-Terry fit, see `fit_bradley_terry`: of each prompt's responses, or of models.

    Args:
        groups: groups with comparisons, pairs or grades.
        evidence: votes (comparisons, and the votes of pairs that have none), prob (the probabilities and target gaps of
            pairs, one vote each), grades (their order: the higher one wins) or labels (chosen wins); auto takes, for
            each prompt, the first of votes, prob and grades that it has.
        over: prompt (a utility for each response, all prompts fitted at once) or model (one for each model, from all
            prompts together, given to each of its responses).
        l2: > 0, of the fit.
        disconnected: responses of a prompt that no chain of comparisons connects have no common scale: leave them
            ungraded, or anchor each connected part at mean 0. Over models it is an error unless anchored.
        bootstrap: so many resampled fits over models, for their 95% intervals.
        seed: of the bootstrap.

    Raises:
        BadInput: an unknown option, nothing to fit, or models that nothing connects.

    Example:
        >>> from marginkit.records import Comparison, Response
        >>> texts = tuple(map(Response, "xyz"))
        >>> group = Group("a", "?", texts, comparisons=(Comparison(0, 1, 3, 1), Comparison(1, 2, 3, 1)))
        >>> grade_by_ranking(Groups.from_iterable([group]), l2=1e-6).values[[0, 2]].round(3)
        array([ 1.099, -1.099])
    """
    for name, value, known in (
        ("evidence", evidence, ("auto", "votes", "prob", "grades", "labels")),
        ("over", over, ("prompt", "model")),
        ("disconnected", disconnected, ("leave", "anchor")),
    ):
        if value not in known:
            raise BadInput(f"{name}={value!r}: the choices are {', '.join(known)}")
    if over == "prompt" and bootstrap:
        raise BadInput("bootstrap is for over=model: a prompt's few votes have no useful interval")
    used = Counter[str]()
    rows: Wins = []
    starts = [0]
    for group in groups:
        start = starts[-1]
        starts.append(start + len(group.responses))
        kind, wins = _wins(group, evidence)
        used[kind] += 1
        rows += [(start + i, start + j, wins_i, wins_j) for i, j, wins_i, wins_j in wins]
    if not rows:
        raise BadInput(f"evidence={evidence}: no prompt has any, so there is nothing to rank by")
    facts: dict[str, Any] = {"prompts by evidence": dict(used), "comparisons": len(rows), "l2": l2}
    if over == "model":
        return _by_model(groups, rows, facts, l2=l2, anchored=disconnected == "anchor", bootstrap=bootstrap, seed=seed)
    comparisons = _comparisons(rows, starts[-1])
    values, parts = fit_bradley_terry(comparisons, l2=l2), comparisons.components()
    compared = np.bincount(comparisons.left, minlength=comparisons.items) + np.bincount(
        comparisons.right, minlength=comparisons.items
    )
    ungraded: dict[str, int] = {}
    _leave_out(values, ungraded, "never compared", compared == 0)
    if disconnected == "leave":
        split = np.zeros(len(values), dtype=bool)
        for start, stop in pairwise(starts):
            own = parts[start:stop][compared[start:stop] > 0]
            split[start:stop] = len(set(own.tolist())) > 1
        _leave_out(values, ungraded, "not connected by comparisons", split)
    return Grades(groups, "utility", values, ungraded, facts)


def _comparisons(rows: Wins, items: int) -> Comparisons:
    columns = np.array(rows, dtype=float).T
    return Comparisons.make(columns[0], columns[1], columns[2], columns[3], items)


def _leave_out(values: Array, ungraded: dict[str, int], reason: str, which: npt.NDArray[np.bool_]) -> None:
    which = which & ~np.isnan(values)
    values[which] = np.nan
    if which.any():
        ungraded[reason] = int(which.sum())


def _wins(group: Group, evidence: Evidence) -> tuple[str, Wins]:
    """What ranks the responses of a group, as (i, j, wins of i, wins of j)."""
    readers: dict[str, Callable[[Group], Wins]] = {"votes": _votes, "prob": _probs, "grades": _order}
    if evidence == "labels":
        return "labels", [(p.chosen, p.rejected, *((0.5, 0.5) if p.tie else (1.0, 0.0))) for p in group.pairs]
    for kind in readers if evidence == "auto" else (evidence,):
        if found := readers[kind](group):
            return kind, found
    return "none", []


def _votes(group: Group) -> Wins:
    compared = [(c.i, c.j, c.wins_i + c.ties / 2, c.wins_j + c.ties / 2) for c in group.comparisons]
    both = {frozenset((c.i, c.j)) for c in group.comparisons}  # their votes are what a pair of the two sums up
    voted = [
        (p.chosen, p.rejected, p.votes)
        for p in group.pairs
        if p.votes is not None and frozenset((p.chosen, p.rejected)) not in both
    ]
    return compared + [(i, j, wins + ties / 2, losses + ties / 2) for i, j, (wins, losses, ties) in voted]


def _probs(group: Group) -> Wins:
    found = []
    for pair in group.pairs:
        prob = pair_evidence(group, pair).prob
        if prob is None and pair.target_gap is not None:  # not that of utilities: a fit to a fit would shrink it again
            prob = float(expit(pair.target_gap))
        if prob is not None:
            found.append((pair.chosen, pair.rejected, prob, 1 - prob))
    return found


def _order(group: Group) -> Wins:
    known = [(at, r.grade) for at, r in enumerate(group.responses) if r.grade is not None]
    return [
        (i, j, 0.5 + 0.5 * float(np.sign(a - b)), 0.5 - 0.5 * float(np.sign(a - b)))
        for place, (i, a) in enumerate(known)
        for j, b in known[place + 1 :]
    ]


def _by_model(
    groups: Groups, rows: Wins, facts: dict[str, Any], *, l2: float, anchored: bool, bootstrap: int, seed: int
) -> Grades:
    """One utility for each model, given to each of its responses."""
    names = [response.model for group in groups for response in group.responses]
    models = sorted({name for name in names if name is not None})
    place = {name: at for at, name in enumerate(models)}
    of = np.array([-1 if name is None else place[name] for name in names])
    used = [
        (int(of[i]), int(of[j]), wins_i, wins_j)
        for i, j, wins_i, wins_j in rows
        if of[i] >= 0 and of[j] >= 0 and of[i] != of[j]
    ]
    if not used:
        raise BadInput("over=model: no comparison is between two named models; use over=prompt")
    comparisons = _comparisons(used, len(models))
    found = describe_components(comparisons.components(), models)
    if found["parts"] > 1 and not anchored:
        raise BadInput(
            f"over=model: the comparisons fall into {found['parts']} parts without a common scale (one of each: "
            f"{', '.join(found['for example'])}); add comparisons between them, or set disconnected=anchor"
        )
    strength = fit_bradley_terry(comparisons, l2=l2)
    ranked = {name: {"utility": float(u), "elo": float(elo(u))} for name, u in zip(models, strength, strict=True)}
    if bootstrap:
        fits = bootstrap_bradley_terry(comparisons, samples=int(bootstrap), l2=l2, seed=seed)
        for name, low, high in zip(models, *np.quantile(fits, [0.025, 0.975], axis=0), strict=True):
            ranked[name] |= {"low": float(low), "high": float(high)}
    values = np.where(of >= 0, strength[of], np.nan)
    missing = int((of < 0).sum())
    facts |= {"models": ranked} | ({"parts": found} if found["parts"] > 1 else {})
    return Grades(groups, "utility", values, {"no model named": missing} if missing else {}, facts)
