"""Clusters and splits: which rows belong together, and which of them a model may see."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.records import Content, Group, content_text

DEV_NAMES = ("dev", "validation", "valid", "val", "eval")
FEW_PROMPTS = 50
DEFAULT_FRACTIONS: Mapping[str, float] = {"train": 0.9, "dev": 0.05, "test": 0.05}


def text_digest(content: Content) -> str:
    """Twelve hex digits of the words of a prompt or response.

    Example:
        >>> text_digest("Name a fruit.")
        'd09b5533a7bf'
    """
    return hashlib.sha1(content_text(content).encode(), usedforsecurity=False).hexdigest()[:12]


def assign_clusters(groups: Groups) -> Groups:
    """Give every group its cluster: the unit of splitting and of the bootstrap.

    The cluster is the prompt's digest. Where every group is one pair and there are fewer than 50 distinct prompts, the
    prompt says little and rows share responses instead: the cluster is then the connected component of equal
    responses. A cluster that the data gives is kept.

    Args:
        groups: any groups.

    Returns:
        The same groups with `cluster` filled in.

    Example:
        >>> from marginkit.records import Response
        >>> rows = [("a", "x", "y"), ("b", "y", "z"), ("c", "p", "q")]
        >>> groups = Groups.from_iterable(Group(i, "Funny?", (Response(l), Response(r))) for i, l, r in rows)
        >>> a, b, c = assign_clusters(groups).column("cluster")
        >>> a == b, a == c
        (True, False)
    """
    prompts: set[str] = set()
    pairs_only, missing = True, False
    for group in groups:
        if len(prompts) < FEW_PROMPTS:
            prompts.add(text_digest(group.prompt))
        pairs_only = pairs_only and len(group.responses) == 2
        missing = missing or group.cluster is None
        if len(prompts) >= FEW_PROMPTS and missing:
            break
    by_response = pairs_only and len(prompts) < FEW_PROMPTS
    if not missing and not by_response:
        return groups
    component = _components(groups) if by_response else {}

    def placed(group: Group) -> Group:
        own = text_digest(group.prompt)
        if group.cluster not in (None, own):
            return group
        return replace(group, cluster=component[text_digest(group.responses[0].turns)] if by_response else own)

    return groups.map(placed)


def _components(groups: Iterable[Group]) -> dict[str, str]:
    """Response digest -> the smallest digest in its connected component (union-find)."""
    parent: dict[str, str] = {}

    def root(digest: str) -> str:
        parent.setdefault(digest, digest)
        while parent[digest] != digest:
            parent[digest] = parent[parent[digest]]
            digest = parent[digest]
        return digest

    for group in groups:
        roots = [root(text_digest(response.turns)) for response in group.responses]
        for other in roots:  # the smaller digest is the root, so the name does not hang on the order of the rows
            first, second = sorted((root(roots[0]), root(other)))
            parent[second] = first
    return {digest: root(digest) for digest in parent}


def assign_splits(groups: Groups, fractions: Mapping[str, float] = DEFAULT_FRACTIONS, seed: int = 0) -> Groups:
    """Give every group without a split one, so that no cluster is in two of the splits drawn here.

    The split is where u = sha256(seed, cluster) in [0, 1) falls among the cumulated fractions. Groups whose split is
    given keep it; a cluster with a given split (one, the same in all its groups) takes its other groups along.

    Args:
        groups: any groups.
        fractions: split -> share of the clusters; they add up to 1.
        seed: another seed draws other splits.

    Returns:
        The groups with `split` filled in.

    Raises:
        BadInput: fractions that are negative or do not add up to 1.

    Example:
        >>> from marginkit.records import Response
        >>> groups = Groups.from_iterable(Group(str(i), f"{i}?", (Response("x"),)) for i in range(1000))
        >>> drawn = assign_splits(groups).column("split")
        >>> drawn.count("train"), drawn.count("dev"), drawn.count("test")
        (902, 46, 52)
    """
    if not fractions or min(fractions.values()) < 0 or not math.isclose(sum(fractions.values()), 1, abs_tol=1e-6):
        raise BadInput(
            f"fractions={dict(fractions)}: shares are >= 0 and add up to 1; for example {dict(DEFAULT_FRACTIONS)}"
        )
    if None not in groups.column("split"):
        return groups
    groups = assign_clusters(groups)
    given: dict[str | None, set[str]] = {}
    for cluster, split in zip(groups.column("cluster"), groups.column("split"), strict=True):
        if split is not None:
            given.setdefault(cluster, set()).add(split)
    names, ends = list(fractions), list(itertools.accumulate(fractions.values()))

    def placed(group: Group) -> Group:
        if group.split is not None:
            return group
        known = given.get(group.cluster, set())
        if len(known) == 1:
            return replace(group, split=next(iter(known)))
        digest = hashlib.sha256(f"{seed}\0{group.cluster}".encode()).digest()
        place = int.from_bytes(digest[:7]) / 2**56
        return replace(group, split=next((n for n, end in zip(names, ends, strict=True) if place < end), names[-1]))

    return groups.map(placed)


def resolve_split(present: Iterable[str], name: str) -> str:
    """The split that `name` means: itself, or for dev the first of dev, validation, valid, val, eval that is present.

    Raises:
        BadInput: none of them is present.

    Example:
        >>> resolve_split(["train", "validation"], "dev")
        'validation'
    """
    splits = sorted(set(present))
    wanted = (name, *DEV_NAMES) if name == "dev" else (name,)
    found = next((split for split in wanted if split in splits), None)
    if found is None:
        raise BadInput(f"no split {name!r}: the data has {', '.join(splits) or 'no splits'}; name one of them")
    return found


def select_split(groups: Groups, name: str) -> Groups:
    """The groups of one split.

    Args:
        groups: groups with splits.
        name: the split; dev also finds validation, valid, val or eval.

    Returns:
        Its groups; the others are counted in `dropped` as "other split".

    Raises:
        BadInput: there is no such split; the message lists those there are.

    Example:
        >>> from marginkit.records import Response
        >>> groups = Groups.from_iterable([Group("a", "?", (Response("x"),), split="val")])
        >>> len(select_split(groups, "dev"))
        1
    """
    found = resolve_split((split for split in groups.column("split") if split is not None), name)
    return groups.filter(lambda group: group.split == found, reason="other split")


def set_aside(groups: Groups, split: str | None) -> tuple[Groups, Groups | None, str]:
    """What pairs may be selected in, and what stays as it is: no model should be judged on pairs that were selected.

    Args:
        groups: any groups.
        split: the split to select in; None: train, where there are several; "all": everything.

    Returns:
        The groups to select in, the others (None if there are none), and a sentence on which they are.

    Raises:
        BadInput: there is no such split.

    Example:
        >>> from marginkit.records import Response
        >>> groups = Groups.from_iterable(Group(s, "?", (Response("x"),), split=s) for s in ("train", "dev"))
        >>> set_aside(groups, None)[2]
        'selected in split train; 1 prompts of dev are written as they were'
    """
    present = sorted({name for name in groups.column("split") if name is not None})
    if split == "all" or (split is None and len(present) < 2):
        if present:
            return groups, None, f"selected in all splits ({', '.join(present)}): a run will judge on selected pairs"
        return groups, None, "the data names no split: a run judges on a part of these pairs, or on data.test=FILE"
    name = resolve_split(present, split or "train")
    part = groups.filter(lambda group: group.split == name, reason="other split")
    part.dropped = dict(groups.dropped)  # the others are not lost
    aside = groups.filter(lambda group: group.split != name, reason="in the split selected from")
    others = ", ".join(other for other in present if other != name) or "no split"
    return part, aside, f"selected in split {name}; {len(aside)} prompts of {others} are written as they were"


def leakage(groups: Groups) -> int:
    """How many clusters (prompts, unless the data or `assign_clusters` says otherwise) are in more than one split.

    Args:
        groups: groups with splits; those without one count as a split of their own.

    Returns:
        The number of clusters found in two splits or more.

    Example:
        >>> from marginkit.records import Response
        >>> rows = [("a", "train"), ("b", "test")]
        >>> leakage(Groups.from_iterable(Group(i, "Same?", (Response("x"),), split=s) for i, s in rows))
        1
    """
    seen: dict[str, str | None] = {}
    leaked: set[str] = set()
    for group in groups:
        cluster = group.cluster or text_digest(group.prompt)
        if seen.setdefault(cluster, group.split) != group.split:
            leaked.add(cluster)
    return len(leaked)
