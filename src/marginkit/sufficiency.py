"""Whether the data of a run has the evidence that its recipe needs, before any model is loaded."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch

from marginkit.assembly import build_loss
from marginkit.config import RunConfig
from marginkit.core.parts import Part
from marginkit.core.tensors import Labels
from marginkit.data.grades import pair_evidence, suggest_gamma
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.records import Group, Pair
from marginkit.registry import load_function, resolve_options

log = logging.getLogger("marginkit")


def target_part(config: RunConfig) -> Part:
    """What the run's target declares of itself."""
    name, _ = resolve_options(config.spec, "target", config.target)
    part: Part = load_function(name).part
    return part


def check_evidence(groups: Groups, config: RunConfig, *, where: str = "") -> None:
    """Refuse data that lacks what the recipe's target needs, before any model is loaded.

    Args:
        groups: paired groups of one split.
        config: the run, or its control.
        where: which split or control, put in front of a refusal; nothing for the training data.

    Raises:
        BadInput: what is missing, and the ways out.
    """
    try:
        _check_evidence(groups, config)
    except BadInput as refusal:
        if not where:
            raise
        raise BadInput(f"{where}: {refusal}") from None


def _check_evidence(groups: Groups, config: RunConfig) -> None:
    _, options = resolve_options(config.spec, "target", config.target)
    needs = target_part(config).needs
    native = ties = graded = bare = ungraded = tied = weighed = 0
    for group in groups:
        for pair in group.pairs:
            found = pair_evidence(group, pair)
            if found.prob is not None or found.target_gap is not None:
                native += 1
            elif found.tie:
                ties += 1
            elif found.grade_gap is not None:
                graded += 1
            else:
                bare += 1
            ungraded += not found.tie and not _has_grades(group, pair)
            tied += found.tie
            weighed += pair.weight != 1.0
    total = native + ties + graded + bare
    part = target_part(config)
    if tied and part.per == "pair" and "keep" in part.makes:
        if tied == total:
            raise BadInput(f"all {total} pairs are ties, which recipe {config.recipe} leaves out: nothing to train on")
        log.info("%d of %d pairs are ties: recipe %s leaves them out", tied, total, config.recipe)
    if weighed and part.per == "response":
        log.info("%d pairs have a weight: a loss per response (recipe %s) does not use it", weighed, config.recipe)
    gamma = options.get("gamma")
    if "utility_gap" in needs and bare:
        hard = "bt" if config.kind == "reward_model" else "dpo"
        raise BadInput(
            f"recipe {config.recipe} needs to know how much better the chosen response is, but {bare} of {total} pairs "
            "have no grades, strength, votes or probability; add such a column (score_chosen and score_rejected, "
            f"margin, votes, p_chosen), or train the hard-label recipe {hard}"
        )
    if "utility_gap" in needs and graded and gamma is None:
        guess = suggest_gamma(groups)
        hint = "" if guess is None else f"; target.gamma={guess:.3g} puts the median grade gap at 75%, auto chooses"
        raise BadInput(
            f"target.gamma is missing: {graded} of {total} pairs have only grades, and recipe {config.recipe} needs to "
            f"know how many logits one grade is worth{hint}"
        )
    if "utility_gap" in needs and gamma is not None and native and not graded:
        raise BadInput(
            f"target.gamma={gamma}: every pair already has a probability or a gap in logits, which needs no gamma; "
            "leave target.gamma out"
        )
    if "grade_gap" in needs and ungraded:
        raise BadInput(
            f"recipe {config.recipe} needs a grade gap, but {ungraded} of {total} pairs have neither two grades nor a "
            "strength; add score_chosen and score_rejected, or margin"
        )
    if "grade_gap" in needs:
        check_domain(groups, config)


def check_domain(groups: Groups, config: RunConfig) -> None:
    """Refuse pairs whose grades the target cannot use (a logarithm of a gap of 0), before any model is loaded.

    Raises:
        BadInput: how many pairs, the rule, and the way out.
    """
    columns: dict[str, list[Any]] = {"grade": [], "strength": [], "tie": []}
    for group in groups:
        for pair in group.pairs:
            both = (group.responses[pair.chosen].grade, group.responses[pair.rejected].grade)
            columns["grade"].append([math.nan if grade is None else grade for grade in both])
            columns["strength"].append(math.nan if pair.strength is None else pair.strength)
            columns["tie"].append(pair_evidence(group, pair).tie)
    labels = Labels(
        grade=torch.tensor(columns["grade"], dtype=torch.float64).reshape(-1, 2),
        strength=torch.tensor(columns["strength"], dtype=torch.float64),
        tie=torch.tensor(columns["tie"], dtype=torch.bool),
    )
    build_loss(config.spec, config.options()).kept(labels, len(columns["tie"]))


def _has_grades(group: Group, pair: Pair) -> bool:
    both = (group.responses[pair.chosen].grade, group.responses[pair.rejected].grade)
    return pair.strength is not None or None not in both
