"""What is in graded data, at a glance: sizes, evidence, grades, splits, and how far mere length goes."""

from __future__ import annotations

from collections import Counter
from typing import Any

from marginkit.data.grades import evidence_kind, grade_scale, suggest_gamma
from marginkit.data.pairing import make_pairs
from marginkit.data.splits import leakage
from marginkit.groups import Groups


def summarise(groups: Groups) -> dict[str, Any]:
    """The facts one wants before training; None where something does not apply.

    Args:
        groups: groups as they were read; pairs are made from all of a group's evidence where the data gives none.

    Returns:
        `groups, responses, responses_per_group {K: groups}, pairs, ties, evidence {kind: pairs}, grades {low, high,
        distinct, missing}, gamma_for_75_percent` (logits per grade that put the median gap at 75%),
        `longer_wins` (share of untied pairs whose chosen response has more characters, equal lengths one half),
        `splits {name: groups}, clusters, prompts_in_several_splits`.

    Example:
        >>> from marginkit.records import Group, Response
        >>> group = Group("a", "Name a fruit.", (Response("Apple.", grade=3.0), Response("No.", grade=1.0)))
        >>> facts = summarise(Groups.from_iterable([group]))
        >>> facts["pairs"], facts["longer_wins"], round(facts["gamma_for_75_percent"], 3)
        (1, 1.0, 0.549)
    """
    sizes = Counter(len(group.responses) for group in groups)
    facts: dict[str, Any] = {
        "groups": len(groups),
        "responses": sum(size * count for size, count in sizes.items()),
        "responses_per_group": {str(size): sizes[size] for size in sorted(sizes)},
    }
    given = any(group.pairs or group.comparisons for group in groups)
    paired = make_pairs(groups, "given" if given else "all")
    longer, untied = 0.0, 0
    for group in paired:
        for pair in group.pairs:
            if not pair.tie:
                chosen, rejected = (len(group.responses[index].text) for index in (pair.chosen, pair.rejected))
                longer += 0.5 if chosen == rejected else float(chosen > rejected)
                untied += 1
    kinds = evidence_kind(paired)
    scale = grade_scale(groups)
    splits = Counter(groups.column("split"))
    return facts | {
        "pairs": sum(len(group.pairs) for group in paired),
        "ties": kinds["tie"],
        "evidence": {kind: count for kind, count in kinds.items() if count and kind != "tie"} or None,
        "grades": None
        if scale.low is None
        else {"low": scale.low, "high": scale.high, "distinct": scale.distinct, "missing": scale.missing},
        "gamma_for_75_percent": suggest_gamma(paired),
        "longer_wins": longer / untied if untied else None,
        "splits": None if set(splits) == {None} else {str(name): splits[name] for name in sorted(splits, key=str)},
        "clusters": len(set(groups.column("cluster"))),
        "prompts_in_several_splits": leakage(groups),
    }
