"""Evidence into utilities and targets: one verb, many ways, each a function in a table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any, Literal

import numpy as np

from marginkit.data.debiasing import check_debias
from marginkit.data.debiasing import debias as take_off
from marginkit.data.graded import (
    Disagreement,
    Grades,
    Kind,
    Ungraded,
    apply_grades,
    check_policies,
    label_agreement,
)
from marginkit.data.grades import pair_evidence
from marginkit.data.grading_report import describe_evidence
from marginkit.data.judge_grader import grade_by_judge_probs
from marginkit.data.judged import clipped_logit
from marginkit.data.options import checked, option_defaults
from marginkit.data.pairing import make_pairs
from marginkit.data.rating_graders import gamma_of_true_grades, grade_by_raters, grade_by_ratings
from marginkit.data.similarity import Embeds, grade_by_similarity
from marginkit.data.vote_graders import grade_by_ranking, grade_by_votes
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.judges.judging import judge
from marginkit.reward_grading import grade_by_crossfit, grade_by_reward

NO_PAIR = "prompts without a pair"


@dataclass(frozen=True, slots=True)
class Grading:
    """Graded groups and how they came about.

    Args:
        groups: with their new evidence; `dropped` counts what was left out.
        report: plain values: settings, what was fitted, before and after, what could not be graded and why.
    """

    groups: Groups
    report: Mapping[str, Any] = field(default_factory=dict)


def grade(
    groups: Groups,
    how: str,
    *,
    debias: Sequence[str] = (),
    disagreement: Disagreement = "keep",
    ungraded: Ungraded = "keep",
    **options: Any,
) -> Groups:
    """Turn the evidence in some groups into utilities (logits) or targets of pairs, which train without a gamma.

    votes: log-odds with a Beta prior. ratings: gamma * grade, or a z-score, quantile or log map. raters: the noise of
    several raters shrinks the target toward 1/2. ranks: a Bradley-Terry fit to votes, probabilities or orders.
    pairwise: the same to the probabilities of pairs. judge_probs: a judge's probabilities as clipped logits, its liking
    for a place cancelled. judge: a language model behind an endpoint is asked, see `marginkit.judge`. similarity:
    distance in meaning, without sign. reward: a reward model or score tables. crossfit: rewards of heads that never saw
    the prompt. given: the utilities and targets that are there already, to debias them.

    Args:
        groups: the evidence.
        how: which of these.
        debias: biases to take off, in this order: length, length_lowess, length_tanh, position, verbosity, source;
            options behind a colon, as in "length_lowess:fraction=0.3".
        disagreement: where the graded gap goes against the label: keep (a soft target below 1/2), drop, trust_label or
            trust_grade. Ties, and pairs that grading itself makes, are always in the order of the grade.
        ungraded: keep or drop what could not be graded.
        options: of the way, see `grader_options(how)`.

    Returns:
        The graded groups: what was written is what training uses.

    Raises:
        BadInput: an unknown way or option, or nothing that the way could grade.

    Example:
        >>> from marginkit.records import Group, Pair, Response
        >>> answers = (Response("Apple.", grade=4.0), Response("Carrot.", grade=1.0))
        >>> groups = Groups.from_iterable([Group("a", "Name a fruit.", answers, pairs=(Pair(0, 1),))])
        >>> [response.utility for response in grade(groups, "ratings", gamma=0.5)[0].responses]
        [2.0, 0.5]
    """
    return grade_and_report(
        groups, how, debias=debias, disagreement=disagreement, ungraded=ungraded, options=options
    ).groups


def grade_and_report(
    groups: Groups,
    how: str,
    *,
    debias: Sequence[str] = (),
    disagreement: Disagreement = "keep",
    ungraded: Ungraded = "keep",
    options: Mapping[str, Any] | None = None,
) -> Grading:
    """`grade`, with what was found on the way.

    Args:
        groups: as for `grade`.
        how: as for `grade`.
        debias: as for `grade`.
        disagreement: as for `grade`.
        ungraded: as for `grade`.
        options: as for `grade`.

    Raises:
        BadInput: as `grade`.

    Example:
        >>> from marginkit.records import Group, Response
        >>> groups = Groups.from_iterable([Group("a", "?", (Response("x", grade=1.0), Response("y")))])
        >>> grade_and_report(groups, "ratings", options={"gamma": 1.0}).report["not graded"]
        {'no grade': 1}
    """
    settings = checked(f"how={how}", _grader(how), options or {})
    if how in WRITE_THEMSELVES and (debias or (disagreement, ungraded) != ("keep", "keep")):
        rule = "writes its evidence itself and turns the pairs by it: no debias, disagreement or ungraded"
        raise BadInput(f"how={how} {rule}; debias the file that it makes, with how=given")
    check_policies(disagreement, ungraded)
    biases = [(words, *_bias(words)) for words in debias]
    gamma = settings.get("gamma")
    if gamma not in (None, "auto") and (isinstance(gamma, bool) or not isinstance(gamma, int | float)):
        raise BadInput(f"how={how}: gamma={gamma!r}: a number > 0, or auto")
    chosen = _choose_gamma(groups, how, settings) if gamma == "auto" else {}
    before = describe_evidence(groups)
    grades = GRADERS[how](groups, **settings)
    report: dict[str, Any] = {
        "how": how,
        "options": {name: _plain(value) for name, value in settings.items()},
        "disagreement": disagreement,
        "ungraded": ungraded,
        "not graded": {},
        "superseded": {},
        "fitted": {},
        "debias": [],
        "before": before,
    }
    if isinstance(grades, Grading):
        return Grading(grades.groups, report | dict(grades.report) | {"after": describe_evidence(grades.groups)})
    if np.isnan(grades.values).all():
        why = ", ".join(f"{reason}: {count}" for reason, count in grades.ungraded.items()) or "no pair"
        raise BadInput(f"how={how}: nothing could be graded ({why}); marginkit check says what the file holds")
    left = {} if grades.kind == "utility" else {NO_PAIR: sum(not group.pairs for group in grades.groups)}
    taken: list[dict[str, Any]] = []
    for words, name, own in biases:
        grades, found = take_off(grades, name, **own)
        taken.append({"bias": words} | found)
    labelled = any(group.pairs or group.comparisons for group in groups)
    if not labelled:  # the pairs were made of grades: they have no label that a grade could go against
        disagreement = "trust_grade"
    made, superseded = apply_grades(grades, disagreement=disagreement, ungraded=ungraded)
    after = describe_evidence(made)
    report |= {
        "writes": grades.kind,
        "not graded": dict(grades.ungraded) | +Counter(left),
        "superseded": superseded,
        "fitted": chosen | dict(grades.facts),
        "debias": taken,
        "after": after | {"agrees with the label": label_agreement(grades) if labelled else None},
    }
    return Grading(made, report)


def grader_options(how: str) -> dict[str, Any]:
    """The options of a way of grading, with their defaults.

    Raises:
        BadInput: there is no such way.

    Example:
        >>> grader_options("votes")
        {'prior_for': 0.5, 'prior_against': 0.5}
    """
    return option_defaults(_grader(how))


def _grader(how: str) -> Callable[..., Grades | Grading]:
    if how not in GRADERS:
        raise BadInput(f"how={how!r}: the ways to grade are {', '.join(GRADERS)}")
    return GRADERS[how]


def _choose_gamma(groups: Groups, how: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Put the gamma that the evidence speaks for in place of "auto"; returns where it comes from."""
    plain = how == "raters" or (settings.get("map", "linear") == "linear" and settings.get("weights") is None)
    if how not in ("raters", "ratings") or not plain or settings.get("by") == "rater":
        raise BadInput("gamma=auto is chosen per grade: for how=raters, or how=ratings with map=linear and no weights")
    from marginkit.gamma_run import choose_gamma

    found = choose_gamma(make_pairs(groups, "all", keep_unpaired=True))
    if how == "ratings":
        settings["gamma"] = found.value
        return {"gamma from": found.sentence}
    settings["gamma"] = gamma_of_true_grades(groups, found.value, aspect=settings.get("aspect"))
    return {"gamma from": f"{found.sentence}; without the raters' noise, gamma = {settings['gamma']:.3g}"}


def _bias(words: str) -> tuple[str, dict[str, Any]]:
    """A bias and its options, from "length_lowess:fraction=0.3"."""
    name, _, rest = words.partition(":")
    own: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        key, sign, value = item.partition("=")
        if not sign:
            raise BadInput(f"debias={words}: write NAME or NAME:OPTION=VALUE, e.g. length_lowess:fraction=0.3")
        own[key] = read_option(value)
    return name, check_debias(name, own)


def read_option(text: str) -> Any:
    """A value as a command line gives it: JSON where it is some, else the text.

    Example:
        >>> read_option("0.3"), read_option("linear"), read_option('{"helpfulness": 1}')
        (0.3, 'linear', {'helpfulness': 1})
    """
    try:
        return json.loads(text)
    except ValueError:
        return text


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | list | tuple | dict | None) else type(value).__name__


def _pairwise(groups: Groups, *, l2: float = 0.01, disconnected: Literal["leave", "anchor"] = "leave") -> Grades:
    """A probability says more than one vote, so the penalty is a tenth of that of `grade_by_ranking`."""
    return grade_by_ranking(groups, evidence="prob", l2=l2, disconnected=disconnected)


def _similarity(
    groups: Groups,
    *,
    embedder: str | Embeds = "minilm",
    gamma: float | None = None,
    map: Literal["linear", "quantile"] = "linear",
    store: str = "",
) -> Grades:
    name = embedder if isinstance(embedder, str) else type(embedder).__name__
    if isinstance(embedder, str):
        from marginkit.embedders import open_embedder

        embedder = open_embedder(embedder, store=Path(store) if store else None)
    made = grade_by_similarity(groups, embedder=embedder, gamma=gamma, map=map)
    return replace(made, facts={"embedder": name, **made.facts})


@wraps(judge)
def _judge(groups: Groups, **options: Any) -> Grading:
    """What a judge says is written as it says it: target gaps, votes, strengths or grades; it turns pairs itself."""
    if missing := {"endpoint", "model"} - set(options):
        raise BadInput(f"how=judge: {max(missing)} is missing; it takes endpoint (a server's base URL) and model")
    made, found = judge(groups, **options)
    report = {
        "options": found.settings,
        "disagreement": "trust_grade",
        "ungraded": "drop",
        "not graded": dict(+found.tally.missing),
        "superseded": {"pieces of evidence": found.tally.replaced} if found.tally.replaced else {},
        "fitted": found.to_json(),
    }
    return Grading(made, report)


def _given(groups: Groups) -> Grades:
    """What training would use: the probabilities and target gaps of pairs, or the utilities where no pair has one."""
    found = [pair_evidence(group, pair) for group in groups for pair in group.pairs]
    if any(
        pair.votes is not None or pair.prob is not None or pair.target_gap is not None
        for group in groups
        for pair in group.pairs
    ):
        if all(one.prob is not None for one in found):
            return _known(groups, "prob", [one.prob for one in found])
        gaps = [one.target_gap if one.prob is None else float(clipped_logit(one.prob, clip=1e-6)) for one in found]
        return _known(groups, "target_gap", gaps)
    utilities = [response.utility for group in groups for response in group.responses]
    if all(utility is None for utility in utilities):
        raise BadInput("how=given: there is neither a utility nor a probability nor a target gap; choose another way")
    return _known(groups, "utility", utilities)


def _known(groups: Groups, kind: Kind, listed: Sequence[float | None]) -> Grades:
    values = np.array([np.nan if value is None else value for value in listed], dtype=float)
    missing = int(np.isnan(values).sum())
    return Grades(groups, kind, values, {f"no {kind}": missing} if missing else {})


GRADERS: dict[str, Callable[..., Grades | Grading]] = {
    "votes": grade_by_votes,
    "ratings": grade_by_ratings,
    "raters": grade_by_raters,
    "ranks": grade_by_ranking,
    "pairwise": _pairwise,
    "judge_probs": grade_by_judge_probs,
    "judge": _judge,
    "similarity": _similarity,
    "reward": grade_by_reward,
    "crossfit": grade_by_crossfit,
    "given": _given,
}
"""Every way to grade: a function from groups and keyword options to `Grades`, or to a `Grading` already written."""
WRITE_THEMSELVES = {"judge"}
"""Ways that return a `Grading`."""
