"""From a configuration to the groups of a run: read, split, paired, and checked for the evidence the recipe needs."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from marginkit.config import RunConfig
from marginkit.control import twin_of
from marginkit.data.checks import Findings
from marginkit.data.pairing import make_pairs
from marginkit.data.sources import read_groups
from marginkit.data.splits import assign_splits, resolve_split
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.progress import progress
from marginkit.records import Group
from marginkit.sufficiency import check_evidence, target_part

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
            mapping=data.mapping,
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
        if not len(train):
            reasons = ", ".join(f"{reason}: {count}" for reason, count in findings[0].dropped.items())
            raise BadInput(f"{', '.join(data.train)}: no row is left ({reasons}); marginkit check names each")
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
        if config.train.control is not None:
            control = config.train.control
            twin = twin_of(config, control, Path("control"))
            for part in (training, made["eval"]):
                if part is not None and len(part) and twin.kind != "sft":
                    check_evidence(part, twin, where=f"train.control={control}")
        if (watched := made["eval"]) is not None and len(watched):
            check_evidence(watched, config, where="evaluation data (data.eval_split=null leaves it out)")
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


def ready(groups: Groups, config: RunConfig, how: str | None = None, *, keep_all: bool = False) -> Groups:
    """Groups as the recipe takes them: pairs, or for SFT the best response of each group.

    Args:
        groups: as they were read.
        config: the run.
        how: how pairs are made; default: as the configuration says.
        keep_all: keep groups without a pair or a grade too; they can be scored.
    """
    if config.kind == "sft":
        return groups.map(best_response_only)
    per_response = target_part(config).per == "response"
    pairs = how or _how(groups, config)
    made = make_pairs(
        groups,
        pairs,  # type: ignore[arg-type]
        ties=config.data.ties,
        max_pairs=config.data.max_pairs,
        seed=config.seed,
        keep_unpaired=per_response or keep_all,
        options=config.data.pair_options,
    )
    return made.filter(_has_a_grade, reason="no graded response") if per_response and not keep_all else made


def _has_a_grade(group: Group) -> bool:
    return any(response.grade is not None for response in group.responses)


def best_response_only(group: Group) -> Group:
    """The group with its best response alone: the chosen one, else the highest grade, else the first."""
    if group.pairs:
        best = group.pairs[0].chosen
    else:
        grades = [-math.inf if response.grade is None else response.grade for response in group.responses]
        best = grades.index(max(grades))
    return replace(group, responses=(group.responses[best],), pairs=(), comparisons=())
