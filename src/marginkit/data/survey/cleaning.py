"""A cleaned copy: which rows a survey found wanting, left out by name and counted."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from marginkit.data.survey.remarks import Marks
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.records import Group

REMOVALS: Mapping[str, str] = {
    "duplicates": "equal to an earlier row but for case, punctuation and white space",
    "near_responses": "all its pairs hold nearly identical responses",
    "near_prompts": "its prompt is a near-duplicate of an earlier one",
    "leaks": "its prompt, or a near-duplicate, is in another split (rows of the training split)",
    "known": "its prompt is one of a known benchmark",
    "against": "its prompt, or a near-duplicate, is in a file given with --against",
    "outliers": "it holds a grade outlier",
}
ALWAYS = ("duplicates",)


def check_removals(names: Sequence[str]) -> list[str]:
    """The removals to make, those that are always made included.

    Raises:
        BadInput: there is no such removal.

    Example:
        >>> check_removals(["leaks"])
        ['duplicates', 'leaks']
    """
    for name in names:
        if name not in REMOVALS:
            close = difflib.get_close_matches(name, REMOVALS, 1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise BadInput(f"--drop {name}: {hint}the removals are {', '.join(REMOVALS)}")
    return [name for name in REMOVALS if name in ALWAYS or name in names]


def clean(
    groups: Groups, marks: Mapping[str, Marks], outliers: Mapping[str, Any] | None, names: Sequence[str]
) -> Groups:
    """Leave out what the survey marked.

    Args:
        groups: the groups that were surveyed.
        marks: name of a removal -> one flag a row.
        outliers: `low` and `high`, beyond which a grade is an outlier; None where there are no grades.
        names: the removals to make, see `REMOVALS`.

    Returns:
        The other groups; `dropped` counts each removed row once, under the first of `names` that takes it.
    """
    names = check_removals(names)
    dropped: Counter[str] = Counter(groups.dropped)

    def why(row: int, group: Group) -> str | None:
        for name in names:
            if name == "outliers":
                if outliers is not None and _beyond(group, outliers):
                    return name
            elif name in marks and marks[name][row]:
                return name
        return None

    def kept() -> Iterator[Group]:
        for row, group in enumerate(groups):
            reason = why(row, group)
            if reason is None:
                yield group
            else:
                dropped[f"{reason} ({REMOVALS[reason]})"] += 1

    made = Groups.from_iterable(kept())
    made.dropped = dict(dropped)
    return made


def _beyond(group: Group, outliers: Mapping[str, Any]) -> bool:
    if not outliers["count"]:
        return False
    return any(r.grade is not None and not outliers["low"] <= r.grade <= outliers["high"] for r in group.responses)
