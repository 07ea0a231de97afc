"""From a configuration to the groups of a run: read, split, paired, and checked for the evidence the recipe needs."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from marginkit.assembly import build_loss
from marginkit.config import RunConfig
from marginkit.core.parts import Part
from marginkit.core.tensors import Labels
from marginkit.data.checks import Findings
from marginkit.data.grades import pair_evidence, suggest_gamma
from marginkit.data.pairing import make_pairs
from marginkit.data.sources import read_groups
from marginkit.data.splits import assign_splits, resolve_split
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.progress import progress
from marginkit.records import Group, Pair
from marginkit.registry import load_function, resolve_options

log = logging.getLogger("marginkit")


@dataclass(frozen=True, slots=True)
class Splits:
    """The groups of a run: paired where the recipe needs pairs, one response each for SFT."""

    train: Groups
    eval: Groups | None
    test: Groups | None
    findings: tuple[Findings, ...] = ()
    all_pairs: bool = False

    def parts(self) -> dict[str, Groups]:
        """The splits that are there, by name."""
        named = {"train": self.train, "eval": self.eval, "test": self.test}
        return {name: part for name, part in named.items() if part is not None}


def read_source(config: RunConfig, sources: Sequence[str]) -> tuple[Groups, Findings]:
    """Read files or datasets as the configuration says, and tell what was read and left out."""
    data = config.data
    with progress(None, "read rows") as bar:
        groups, found = read_groups(
            list(sources) if len(sources) > 1 else sources[0],
            columns=data.columns,
            ties=data.ties,
            contradiction=data.contradiction,
            contradiction_limit=data.contradiction_limit,
            strict=data.strict,
            config_name=data.name,
            limit=data.limit,
            progress=bar.to,
        )
    dropped = ", ".join(f"{reason}: {count}" for reason, count in found.dropped.items())
    log.info(
        "%s: %s rows; read %d, kept %d, dropped %d%s",
        found.file,
        found.dialect,
        found.read,
        found.kept,
        found.read - found.kept,
        f" ({dropped})" if dropped else "",
    )
    for note in found.notes:
        log.info("  %s", note)
    return groups, found


def prepare(config: RunConfig, train: Groups | None = None) -> Splits:
    """Read, split and pair the data of a run.

    Args:
        config: the run.
        train: groups at hand, instead of what `data.train` names.

    Raises:
        BadInput: no data, no such split, nothing to train on, or not the evidence the recipe needs.
    """
    data = config.data
    findings: list[Findings] = []

    def read(sources: Sequence[str]) -> Groups:
        groups, found = read_source(config, sources)
        findings.append(found)
        return groups

    if train is None:
        if not data.train:
            raise BadInput("data.train is missing: the file(s) to train on, e.g. data.train=ratings.jsonl")
        train = read(data.train)
    whole = assign_splits(train, data.fractions, config.seed)
    how = _how(whole, config)
    raw: dict[str, Groups | None] = {"train": _split(whole, data.train_split, required=True)}
    for name, files, split in (("eval", data.eval, data.eval_split), ("test", data.test, data.test_split)):
        raw[name] = read(files) if files else None if split is None else _split(whole, split, required=False)
    made = {name: None if part is None else ready(part, config, how) for name, part in raw.items()}
    training = made["train"]
    assert training is not None
    if not len(training):
        reasons = ", ".join(f"{reason}: {count}" for reason, count in training.dropped.items()) or "no rows"
        raise BadInput(f"nothing to train on: no {'responses' if config.kind == 'sft' else 'pairs'} left ({reasons})")
    if config.kind != "sft":
        check_evidence(training, config)
    held = {name: None if (part := made[name]) is None or not len(part) else part for name in ("eval", "test")}
    return Splits(training, held["eval"], held["test"], tuple(findings), how == "all")


def _split(groups: Groups, split: str, *, required: bool) -> Groups | None:
    present = set(groups.column("split"))
    try:
        name = resolve_split(present, split)
    except BadInput:
        if required:
            raise
        return None
    return Groups.from_iterable(group for group in groups if group.split == name)


def _how(groups: Groups, config: RunConfig) -> str:
    if config.data.pairs != "auto":
        return config.data.pairs
    return "given" if any(group.pairs or group.comparisons for group in groups) else "all"


def ready(groups: Groups, config: RunConfig, how: str | None = None) -> Groups:
    """Groups as the recipe takes them: pairs, or for SFT the best response of each group."""
    if config.kind == "sft":
        return groups.map(best_response_only)
    per_response = _target_part(config).per == "response"
    pairs = how or _how(groups, config)
    made = make_pairs(
        groups,
        pairs,  # type: ignore[arg-type]
        ties=config.data.ties,
        max_pairs=config.data.max_pairs,
        seed=config.seed,
        keep_unpaired=per_response,
    )
    return made.filter(_has_a_grade, reason="no graded response") if per_response else made


def _has_a_grade(group: Group) -> bool:
    return any(response.grade is not None for response in group.responses)


def _target_part(config: RunConfig) -> Part:
    """What the run's target declares of itself."""
    name, _ = resolve_options(config.spec, "target", config.target)
    part: Part = load_function(name).part
    return part


def best_response_only(group: Group) -> Group:
    """The group with its best response alone: the chosen one, else the highest grade, else the first."""
    if group.pairs:
        best = group.pairs[0].chosen
    else:
        grades = [-math.inf if response.grade is None else response.grade for response in group.responses]
        best = grades.index(max(grades))
    return replace(group, responses=(group.responses[best],), pairs=(), comparisons=())


def check_evidence(groups: Groups, config: RunConfig) -> None:
    """Refuse data that lacks what the recipe's target needs, before any model is loaded.

    Raises:
        BadInput: what is missing, and the ways out.
    """
    _, options = resolve_options(config.spec, "target", config.target)
    needs = _target_part(config).needs
    native = ties = graded = bare = ungraded = 0
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
    total = native + ties + graded + bare
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
        hint = "" if guess is None else f"; target.gamma={guess:.3g} puts the median grade gap at 75%"
        raise BadInput(
            f"target.gamma is missing: {graded} of {total} pairs have only grades, and recipe {config.recipe} needs to "
            f"know how many logits one grade is worth{hint}"
        )
    if "utility_gap" in needs and gamma is not None and native and not graded:
        raise BadInput(
            f"target.gamma={gamma:g}: every pair already has a probability or a gap in logits, which needs no gamma; "
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
